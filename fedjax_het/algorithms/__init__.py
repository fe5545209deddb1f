"""Published methods, one a file, and the registry of all of them.

`REGISTRY[name]` holds the factory, a one-line summary, and `example`, a small
instance for any model: what the contract tests run and what a notebook can
start from.
"""

from fedjax_het.algorithms import _stale_corrections as corrections
from fedjax_het.algorithms._apfl import apfl
from fedjax_het.algorithms._arm_bandit import ArmSpace
from fedjax_het.algorithms._bn_selection import bn_selection
from fedjax_het.algorithms._centralised import centralised, pooled
from fedjax_het.algorithms._ditto import ditto
from fedjax_het.algorithms._fed_avg import fed_avg
from fedjax_het.algorithms._fed_bn import fed_bn, is_norm
from fedjax_het.algorithms._fed_dst import fed_dst
from fedjax_het.algorithms._fed_dyn import fed_dyn
from fedjax_het.algorithms._fed_lora import fed_lora, ffa_lora
from fedjax_het.algorithms._fed_mask import MASK_DOWNLINKS, fed_mask
from fedjax_het.algorithms._fed_nova import fed_nova
from fedjax_het.algorithms._fed_per import fed_per
from fedjax_het.algorithms._fed_pm import fed_pm
from fedjax_het.algorithms._fed_prox import fed_prox
from fedjax_het.algorithms._fed_rep import fed_rep
from fedjax_het.algorithms._fed_rolex import fed_rolex
from fedjax_het.algorithms._fed_spine import fed_spine
from fedjax_het.algorithms._fed_tiny import fed_tiny
from fedjax_het.algorithms._fine_tuned import fine_tuned
from fedjax_het.algorithms._flasc import federated_select, flasc
from fedjax_het.algorithms._gate import gating
from fedjax_het.algorithms._gate_judge import gate_density, gate_judge
from fedjax_het.algorithms._gradient_inversion import Search
from fedjax_het.algorithms._het_lora import het_lora
from fedjax_het.algorithms._hetero_fl import hetero_fl
from fedjax_het.algorithms._hide_n_seek import DOWNLINKS, hide_n_seek
from fedjax_het.algorithms._lg_fed_avg import lg_fed_avg
from fedjax_het.algorithms._local_only import local_only
from fedjax_het.algorithms._lora_importance import Ramp
from fedjax_het.algorithms._lottery_fl import lottery_fl
from fedjax_het.algorithms._masked_fed_avg import masked_fed_avg
from fedjax_het.algorithms._mime import mime
from fedjax_het.algorithms._moon import moon
from fedjax_het.algorithms._p_fed_me import p_fed_me
from fedjax_het.algorithms._per_fed_avg import per_fed_avg
from fedjax_het.algorithms._pfed_gate import pfed_gate
from fedjax_het.algorithms._prune_fl import prune_fl
from fedjax_het.algorithms._registry import REGISTRY, Entry, example
from fedjax_het.algorithms._reptile import reptile
from fedjax_het.algorithms._scaffold import scaffold
from fedjax_het.algorithms._sparse_adapter import sparse_adapter
from fedjax_het.algorithms._spine_server import Costs
from fedjax_het.algorithms._split_mix import split_mix
from fedjax_het.algorithms._stale import stale_fed_avg
from fedjax_het.algorithms._stale_inversion import inverted_fed_avg

__all__ = [
  "DOWNLINKS",
  "MASK_DOWNLINKS",
  "REGISTRY",
  "ArmSpace",
  "Costs",
  "Entry",
  "Ramp",
  "Search",
  "apfl",
  "bn_selection",
  "centralised",
  "corrections",
  "ditto",
  "example",
  "fed_avg",
  "fed_bn",
  "fed_dst",
  "fed_dyn",
  "fed_lora",
  "fed_mask",
  "fed_nova",
  "fed_per",
  "fed_pm",
  "fed_prox",
  "fed_rep",
  "fed_rolex",
  "fed_spine",
  "fed_tiny",
  "federated_select",
  "ffa_lora",
  "fine_tuned",
  "flasc",
  "gate_density",
  "gate_judge",
  "gating",
  "het_lora",
  "hetero_fl",
  "hide_n_seek",
  "inverted_fed_avg",
  "is_norm",
  "lg_fed_avg",
  "local_only",
  "lottery_fl",
  "masked_fed_avg",
  "mime",
  "moon",
  "p_fed_me",
  "per_fed_avg",
  "pfed_gate",
  "pooled",
  "prune_fl",
  "reptile",
  "scaffold",
  "sparse_adapter",
  "split_mix",
  "stale_fed_avg",
]
