"""Extensions: what the first API could have more or less of. Since 2.1 microversions say that, and
the list is only what old clients look for; what this cloud has not is left out of it.

And what was there once: its paths answer that it has gone.
"""

from __future__ import annotations

import re

from treadle.api.openstack.compute.common import Body
from treadle.api.openstack.wire import Ask, Call, Gone
from treadle.errors import NotFound

EXTENSIONS = {
    "OS-DCF": "DiskConfig", "OS-EXT-AZ": "ExtendedAvailabilityZone",
    "OS-EXT-IMG-SIZE": "ImageSize", "OS-EXT-IPS": "ExtendedIps",
    "OS-EXT-IPS-MAC": "ExtendedIpsMac", "OS-EXT-SRV-ATTR": "ExtendedServerAttributes",
    "OS-EXT-STS": "ExtendedStatus", "OS-FLV-DISABLED": "FlavorDisabled",
    "OS-FLV-EXT-DATA": "FlavorExtraData", "OS-SCH-HNT": "SchedulerHints",
    "OS-SRV-USG": "ServerUsage", "os-access-ips": "AccessIPs", "os-admin-actions": "AdminActions",
    "os-admin-password": "AdminPassword", "os-aggregates": "Aggregates",
    "os-attach-interfaces": "AttachInterfaces", "os-availability-zone": "AvailabilityZone",
    "os-block-device-mapping": "BlockDeviceMapping",
    "os-block-device-mapping-v2-boot": "BlockDeviceMappingV2Boot",
    "os-config-drive": "ConfigDrive", "os-console-auth-tokens": "ConsoleAuthTokens",
    "os-console-output": "ConsoleOutput", "os-consoles": "Consoles",
    "os-create-server-ext": "Createserverext", "os-deferred-delete": "DeferredDelete",
    "os-extended-floating-ips": "ExtendedFloatingIps",
    "os-extended-hypervisors": "ExtendedHypervisors", "os-extended-networks": "ExtendedNetworks",
    "os-extended-quotas": "ExtendedQuotas",
    "os-extended-rescue-with-image": "ExtendedRescueWithImage",
    "os-extended-services": "ExtendedServices",
    "os-extended-services-delete": "ExtendedServicesDelete",
    "os-extended-status": "ExtendedStatus", "os-flavor-access": "FlavorAccess",
    "os-flavor-extra-specs": "FlavorExtraSpecs", "os-flavor-manage": "FlavorManage",
    "os-flavor-rxtx": "FlavorRxtx", "os-flavor-swap": "FlavorSwap",
    "os-floating-ip-pools": "FloatingIpPools", "os-floating-ips": "FloatingIps",
    "os-hide-server-addresses": "HideServerAddresses", "os-hosts": "Hosts",
    "os-hypervisor-status": "HypervisorStatus", "os-hypervisors": "Hypervisors",
    "os-instance-actions": "InstanceActions",
    "os-instance_usage_audit_log": "OSInstanceUsageAuditLog", "os-keypairs": "Keypairs",
    "os-lock-server": "LockServer", "os-migrations": "Migrations",
    "os-multiple-create": "MultipleCreate", "os-networks": "Networks",
    "os-pause-server": "PauseServer",
    "os-preserve-ephemeral-rebuild": "PreserveEphemeralOnRebuild",
    "os-quota-class-sets": "QuotaClasses", "os-quota-sets": "Quotas", "os-rescue": "Rescue",
    "os-security-groups": "SecurityGroups", "os-server-diagnostics": "ServerDiagnostics",
    "os-server-external-events": "ServerExternalEvents",
    "os-server-group-quotas": "ServerGroupQuotas", "os-server-groups": "ServerGroups",
    "os-server-list-multi-status": "ServerListMultiStatus", "os-server-password": "ServerPassword",
    "os-server-sort-keys": "ServerSortKeys", "os-server-start-stop": "ServerStartStop",
    "os-services": "Services", "os-shelve": "Shelve",
    "os-simple-tenant-usage": "SimpleTenantUsage", "os-suspend-server": "SuspendServer",
    "os-tenant-networks": "OSTenantNetworks", "os-used-limits": "UsedLimits",
    "os-used-limits-for-admin": "UsedLimitsForAdmin", "os-user-data": "UserData",
    "os-user-quotas": "UserQuotas",
}
"""Names by alias."""
GONE = (
    ("os-agents", "GET POST"), ("os-agents/{id}", "PUT DELETE"),
    ("os-cells", "GET POST"), ("os-cells/capacities", "GET"), ("os-cells/detail", "GET"),
    ("os-cells/info", "GET"), ("os-cells/sync_instances", "POST"),
    ("os-cells/{id}", "GET PUT DELETE"), ("os-cells/{id}/capacities", "GET"),
    ("os-certificates", "POST"), ("os-certificates/{id}", "GET"),
    ("os-cloudpipe", "GET POST"), ("os-cloudpipe/{id}", "PUT"),
    ("os-fixed-ips/{id}", "GET"), ("os-fixed-ips/{id}/action", "POST"),
    ("os-floating-ip-dns", "GET"), ("os-floating-ip-dns/{id}", "PUT DELETE"),
    ("os-floating-ip-dns/{id}/entries/{name}", "GET PUT DELETE"),
    ("os-floating-ips-bulk", "GET POST"), ("os-floating-ips-bulk/{id}", "GET PUT"),
    ("os-fping", "GET"), ("os-fping/{id}", "GET"),
    ("os-networks", "POST"), ("os-networks/add", "POST"), ("os-networks/{id}", "DELETE"),
    ("os-networks/{id}/action", "POST"),
    ("os-security-group-default-rules", "GET POST"),
    ("os-security-group-default-rules/{id}", "GET DELETE"),
    ("os-tenant-networks", "POST"), ("os-tenant-networks/{id}", "DELETE"),
)
"""Paths, and the methods that were taken there."""


def _view(alias: str) -> Body:
    name = EXTENSIONS[alias]
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return {
        "alias": alias, "name": name, "description": f"{words}.", "links": [],
        "namespace": "http://docs.openstack.org/compute/ext/fake_xml",
        "updated": "2014-12-03T00:00:00Z",
    }


async def listed(_ask: Ask) -> Body:
    """All extensions."""
    return {"extensions": [_view(alias) for alias in EXTENSIONS]}


async def show(ask: Ask) -> Body:
    """One extension."""
    alias = ask.path["alias"]
    if alias not in EXTENSIONS:
        raise NotFound(f"There is no extension {alias[:64]}.")
    return {"extension": _view(alias)}


async def gone(_ask: Ask) -> None:
    """What it says: in no microversion is there anything."""
    raise Gone("This API has been removed.")


CALLS = [
    Call("GET", "/v2.1/extensions", listed, "compute:extensions:list"),
    Call("GET", "/v2.1/extensions/{alias}", show, "compute:extensions:list"),
    *(
        Call(method, f"/v2.1/{path}", gone, "compute:extensions:gone", 410)
        for path, methods in GONE for method in methods.split()
    ),
]
