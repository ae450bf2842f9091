"""The network that guests of a host join, and the filter before each of their ports."""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ET
from ipaddress import IPv4Network, ip_network
from typing import Any

import libvirt

from treadle.errors import InvalidInput
from treadle.hypervisor.base import HostRefused
from treadle.hypervisor.libvirt import errors
from treadle.hypervisor.libvirt.connection import Attempt, Link, as_value

FILTER = "treadle-clean"
FILTER_UUID = "877d59e0-d296-4648-8c34-9049780a50c8"
MAX_BRIDGE = 15

FORWARD_FIRST = 20000
FORWARD_COUNT = 40000
FORWARD_TRIES = 20


def bridge_name(network: str) -> str:
    """Name of the bridge that a network of ours gets: at most 15 characters, always the same."""
    name = f"tr-{network}"
    if len(name) <= MAX_BRIDGE and name.isascii():
        return name
    return f"tr-{hashlib.sha256(network.encode()).hexdigest()[: MAX_BRIDGE - 3]}"


def parse_subnet(text: str) -> IPv4Network:
    """Errors: `InvalidInput`."""
    try:
        subnet = ip_network(text)
    except ValueError as error:
        raise InvalidInput("subnet", text, "give a network in CIDR form: 10.64.0.0/24") from error
    if not isinstance(subnet, IPv4Network) or subnet.num_addresses < 8:
        raise InvalidInput("subnet", text, "give an IPv4 network of /29 or larger")
    return subnet


def network_xml(name: str, subnet: IPv4Network) -> str:
    """A NAT network: the host is the first address, DHCP has the rest."""
    root = ET.Element("network")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "forward", {"mode": "nat"})
    ET.SubElement(root, "bridge", {"name": bridge_name(name), "stp": "off", "delay": "0"})
    address = ET.SubElement(
        root, "ip", {"address": str(subnet[1]), "netmask": str(subnet.netmask)}
    )
    dhcp = ET.SubElement(address, "dhcp")
    ET.SubElement(dhcp, "range", {"start": str(subnet[2]), "end": str(subnet[-2])})
    return ET.tostring(root, encoding="unicode")


def prepare_network(link: Link, attempt: Attempt, name: str, subnet_text: str) -> None:
    """Have the network there, on that subnet, running, and started with the host.

    Errors: `HostRefused` where the subnet collides, or guests still use the network on another.
    """
    conn = link.conn
    network = as_value(attempt, conn.networkLookupByName, name, missing=libvirt.VIR_ERR_NO_NETWORK)
    if subnet_text:
        subnet = parse_subnet(subnet_text)
        if network is not None and not _is_on(attempt, network, subnet):
            _make_room(attempt, network, name, subnet)
            network = None
        if network is None:
            network = attempt(conn.networkDefineXML, network_xml(name, subnet))
    elif network is None:
        raise HostRefused(f"there is no network {name} on the host: give it a subnet")
    if not attempt(network.isActive):
        _start(attempt, network, name, subnet_text)
    if not attempt(network.autostart):
        attempt(network.setAutostart, 1)
    link.known["network", name] = network


def _start(attempt: Attempt, network: Any, name: str, subnet: str) -> None:
    try:
        attempt(network.create)
    except libvirt.libvirtError as error:
        if errors.is_broken(error):
            raise
        if attempt(network.isActive):
            return
        raise HostRefused(
            f"the network {name} does not start on {subnet or 'its subnet'}: "
            f"{errors.detail(error)}; give the host another subnet if that one is taken"
        ) from error


def _is_on(attempt: Attempt, network: Any, subnet: IPv4Network) -> bool:
    address = ET.fromstring(attempt(network.XMLDesc, 0)).find("ip")
    if address is None:
        return False
    mask = address.get("netmask") or address.get("prefix") or "32"
    try:
        found = ip_network(f"{address.get('address')}/{mask}", strict=False)
    except ValueError:
        return False
    return found == subnet


def _make_room(attempt: Attempt, network: Any, name: str, subnet: IPv4Network) -> None:
    """Take away a network on another subnet, unless guests are on it."""
    if attempt(network.isActive):
        try:
            busy = bool(attempt(network.listAllPorts, 0))
        except libvirt.libvirtError as error:
            if errors.code_of(error) != libvirt.VIR_ERR_NO_SUPPORT:
                raise
            busy = True
        if busy:
            raise HostRefused(
                f"the network {name} is in use on another subnet than {subnet}: "
                "set the host's subnet to the one it has, or stop its guests first"
            )
        attempt(network.destroy)
    attempt(network.undefine)


def remove_network(link: Link, attempt: Attempt, name: str) -> None:
    """Take the network away, unless guests are on it."""
    network = as_value(
        attempt, link.conn.networkLookupByName, name, missing=libvirt.VIR_ERR_NO_NETWORK
    )
    if network is None:
        return
    if attempt(network.isActive):
        if attempt(network.listAllPorts, 0):
            return
        attempt(network.destroy)
    attempt(network.undefine)
    link.known.pop(("network", name), None)


def network_of(link: Link, attempt: Attempt, name: str) -> Any:
    """The network, or None; looked up once per connection."""
    network = link.known.get(("network", name))
    if network is None:
        network = as_value(
            attempt, link.conn.networkLookupByName, name, missing=libvirt.VIR_ERR_NO_NETWORK
        )
        if network is not None:
            link.known["network", name] = network
    return network


def leases(link: Link, attempt: Attempt, name: str, mac: str | None) -> dict[str, list[str]]:
    """Addresses that DHCP gave, by MAC address in lower case; of one MAC address, or of all."""
    network = network_of(link, attempt, name)
    if network is None:
        return {}
    try:
        rows = attempt(network.DHCPLeases, mac) if mac else attempt(network.DHCPLeases)
    except libvirt.libvirtError as error:
        if errors.is_broken(error):
            raise
        return {}
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.get("mac") and row.get("ipaddr"):
            found.setdefault(row["mac"].lower(), []).append(row["ipaddr"])
    return found


def neighbours(attempt: Attempt, domain: Any) -> tuple[str, ...]:
    """On a bridge that is not ours: the addresses that the host's ARP table shows."""
    try:
        cards = attempt(domain.interfaceAddresses, libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP)
    except libvirt.libvirtError as error:
        if errors.is_broken(error):
            raise
        return ()
    return tuple(
        row["addr"] for card in cards.values() for row in card.get("addrs") or () if row.get("addr")
    )


# -- the filter


def filter_xml() -> str:
    """What a guest may not say: another's MAC address, and that it is a router or DHCP server.

    All of it is decided at the bridge port, so it holds without the kernel's bridge netfilter.
    """
    root = ET.Element("filter", {"name": FILTER, "chain": "root"})
    ET.SubElement(root, "uuid").text = FILTER_UUID

    def drop(priority: int, kind: str, **match: str) -> None:
        rule = ET.SubElement(
            root, "rule", {"action": "drop", "direction": "out", "priority": str(priority)}
        )
        ET.SubElement(rule, kind, match)

    drop(100, "mac", match="no", srcmacaddr="$MAC")
    drop(200, "arp", match="no", arpsrcmacaddr="$MAC")
    drop(300, "ip", protocol="udp", srcportstart="67", srcportend="67")
    drop(300, "ipv6", protocol="udp", srcportstart="547", srcportend="547")
    drop(300, "ipv6", protocol="icmpv6", type="134")
    return ET.tostring(root, encoding="unicode")


def prepare_filter(link: Link, attempt: Attempt, bridge: str) -> bool:
    """Define the filter and find out, once per connection, whether the host can apply it.

    Defining always works; applying needs ebtables. So it is applied once to the bridge itself, as
    if that were a guest's port, where it matches nothing. It is not defined again: that would
    apply it again to every guest. Rules that change need a new name.
    """
    if link.known.get(("filter", bridge)):
        return True
    try:
        known = as_value(
            attempt, link.conn.nwfilterLookupByName, FILTER, missing=libvirt.VIR_ERR_NO_NWFILTER
        )
        if known is None:
            attempt(link.conn.nwfilterDefineXML, filter_xml())
        binding = attempt(link.conn.nwfilterBindingCreateXML, _binding_xml(bridge), 0)
        attempt(binding.delete)
    except libvirt.libvirtError as error:
        if errors.is_broken(error):
            raise
        return False
    link.known["filter", bridge] = True
    return True


def _binding_xml(bridge: str) -> str:
    root = ET.Element("filterbinding")
    owner = ET.SubElement(root, "owner")
    ET.SubElement(owner, "name").text = "treadle-probe"
    ET.SubElement(owner, "uuid").text = FILTER_UUID
    ET.SubElement(root, "portdev", {"name": bridge})
    ET.SubElement(root, "mac", {"address": "52:54:00:00:00:01"})
    ET.SubElement(root, "filterref", {"filter": FILTER})
    return ET.tostring(root, encoding="unicode")


# -- a rootless session


def forward_ports(uuid: str) -> list[int]:
    """Ports of the host to try for a guest's SSH: the same ones in the same order each time."""
    first = int(hashlib.sha256(uuid.encode()).hexdigest(), 16) % FORWARD_COUNT
    return [FORWARD_FIRST + (first + step * 7919) % FORWARD_COUNT for step in range(FORWARD_TRIES)]


def forward(attempt: Attempt, domain: Any, port: int, guest_port: int) -> bool:
    """Lead 127.0.0.1:`port` of the host to the guest. False where the port is taken.

    libvirt has no call for it on its own user networks; the monitor does. It prints nothing when
    it has done it.
    """
    import libvirt_qemu

    command = f"hostfwd_add hostnet0 tcp:127.0.0.1:{port}-:{guest_port}"
    answer = attempt(
        libvirt_qemu.qemuMonitorCommand, domain, command,
        libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP,
    )
    return not str(answer).strip()


def bridge_of(link: Link, attempt: Attempt, name: str) -> str:
    """The bridge of a network; "" where it has none."""
    found = network_of(link, attempt, name)
    if found is None:
        return ""
    bridge = ET.fromstring(attempt(found.XMLDesc, 0)).find("bridge")
    return "" if bridge is None else bridge.get("name", "")
