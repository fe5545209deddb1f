"""Schedulers of the literature: who trains when, and how updates are merged.

Each is a `devices.events.Scheduler`; a user's own needs only its methods.
All merge rules here are linear in the updates, as published.
"""

from fedjax_het.devices.schedules._fed_async import FedAsync, FedBuff
from fedjax_het.devices.schedules._fed_at import FedAT
from fedjax_het.devices.schedules._fed_compass import FedCompass
from fedjax_het.devices.schedules._synchronous import Synchronous

__all__ = ["FedAT", "FedAsync", "FedBuff", "FedCompass", "Synchronous"]
