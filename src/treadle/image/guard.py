"""Where the controller goes on behalf of users: to public addresses, and what an operator adds."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

from treadle.image.inspect import ImageRefused

_NEVER = (
    IPv4Network("192.0.0.0/24"), IPv6Network("64:ff9b:1::/48"), IPv6Network("fec0::/10"),
    IPv6Network("::/96"),
)
_NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Guard:
    """Where URLs may lead that ordinary users name: public addresses, and what is added here.

    `ports` empty: all of them.
    """

    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    ports: tuple[int, ...] = (80, 443)

    def check(self, url: str) -> None:
        """What can be said of a URL without asking anybody. Errors: `ImageRefused`."""
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if self.ports and port not in self.ports:
            allowed = ", ".join(map(str, self.ports))
            raise ImageRefused(f"port {port} may not be fetched from: only {allowed} may")
        try:
            address = ip_address((parts.hostname or "").partition("%")[0])
        except ValueError:
            return
        self._check_address(address, parts.hostname or "")

    def resolve(self, host: str, port: int) -> str:
        """The address to connect to for a name. All that it has must be allowed, so that no
        later answer of the name server counts. Errors: `ImageRefused`, `OSError`."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(one[4][0]) for one in found]
        for text in addresses:
            self._check_address(ip_address(text.partition("%")[0]), host)
        return addresses[0]

    def _check_address(self, address: IPv4Address | IPv6Address, host: str) -> None:
        if not all(map(self._allows, _meant_by(address))):
            raise ImageRefused(f"{host[:100]} does not pass filtering: it is no public address")

    def _allows(self, address: IPv4Address | IPv6Address) -> bool:
        if any(address in network for network in self.networks):
            return True
        if any(address in network for network in _NEVER):
            return False
        return address.is_global and not address.is_multicast


def _meant_by(address: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    """The address, or the IPv4 addresses that are written into it."""
    if isinstance(address, IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address.sixtofour is not None:
        return [address.sixtofour]
    if address.teredo is not None:
        return list(address.teredo)
    if address in _NAT64:
        return [IPv4Address(int(address) & 0xFFFF_FFFF)]
    return [address]
