"""Bandits choose among arms for a sequence of instances; pure in the ledger, as searchers are."""

from strategies.bandits.base import Bandit, Learner
from strategies.bandits.cheb_cb import ChebCB
from strategies.bandits.tsallis_inf import BinnedTsallisINF, TsallisINF

__all__ = ["Bandit", "BinnedTsallisINF", "ChebCB", "Learner", "TsallisINF"]
