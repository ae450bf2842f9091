"""Ranks hosts for a request: filters, weighers, policies. It knows no database."""

from treadle.scheduler.engine import Scheduler, explain
from treadle.scheduler.model import (
    Cause,
    Filter,
    HostColumns,
    HostView,
    PlacementRequest,
    PluginError,
    Policy,
    Ranking,
    Weigher,
)
from treadle.scheduler.record import Decision
from treadle.scheduler.registry import Registry

__all__ = [
    "Cause",
    "Decision",
    "Filter",
    "HostColumns",
    "HostView",
    "PlacementRequest",
    "PluginError",
    "Policy",
    "Ranking",
    "Registry",
    "Scheduler",
    "Weigher",
    "explain",
]
