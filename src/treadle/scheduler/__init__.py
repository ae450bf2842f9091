"""Ranks hosts for a request: filters, weighers, policies. It knows no database."""

from treadle.scheduler.columns import HostColumns
from treadle.scheduler.engine import OnFault, Scheduler, explain
from treadle.scheduler.model import HostView, PlacementRequest
from treadle.scheduler.plugin import Cause, Filter, PluginError, Policy, Ranking, Weigher
from treadle.scheduler.record import Decision
from treadle.scheduler.registry import Registry
from treadle.scheduler.table import HostTable

__all__ = [
    "Cause",
    "Decision",
    "Filter",
    "HostColumns",
    "HostTable",
    "HostView",
    "OnFault",
    "PlacementRequest",
    "PluginError",
    "Policy",
    "Ranking",
    "Registry",
    "Scheduler",
    "Weigher",
    "explain",
]
