"""What the server, and whoever sees the model, cannot learn about a client."""

from fedjax_het.privacy._secure_votes import secure_votes
from fedjax_het.privacy.accountant import epsilon, noise_for
from fedjax_het.privacy.central import AdaptiveClip, differentially_private
from fedjax_het.privacy.local import locally_private

__all__ = [
  "AdaptiveClip",
  "differentially_private",
  "epsilon",
  "locally_private",
  "noise_for",
  "secure_votes",
]
