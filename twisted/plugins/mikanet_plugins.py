"""What mikanet adds to twistd and to endpoint strings. Nothing is imported here that a look at the list does not need."""

from twisted.application.service import ServiceMaker

from mikanet.endpoints import ClientAndServerParser, ClientParser

mika_server = ServiceMaker(
    "mika-server", "mikanet.mika.tap_server", "Mika: the server of a private way out.", "mika-server"
)
mika_client = ServiceMaker(
    "mika-client", "mikanet.mika.tap_client", "Mika: the client, with its front doors.", "mika-client"
)

megaki_server = ServiceMaker(
    "megaki-server", "mikanet.megaki.tap_server", "Megaki: requests to a pool of workers.", "megaki-server"
)
megaki_client = ServiceMaker(
    "megaki-client", "mikanet.megaki.tap_client", "Megaki: an HTTP gateway to a server.", "megaki-client"
)

paqet_server = ServiceMaker(
    "paqet-server", "mikanet.paqet.tap_server", "paqet: the server of a tunnel in packets like TCP's.", "paqet-server"
)
paqet_client = ServiceMaker(
    "paqet-client", "mikanet.paqet.tap_client", "paqet: the client, with its front doors.", "paqet-client"
)

pickaxe_server = ServiceMaker(
    "pickaxe-server", "mikanet.pickaxe.tap_server", "Pickaxe: sessions that outlive their carriers.", "pickaxe-server"
)
pickaxe_client = ServiceMaker(
    "pickaxe-client", "mikanet.pickaxe.tap_client", "Pickaxe: the client, with its front doors.", "pickaxe-client"
)

nitrosocks_server = ServiceMaker(
    "nitrosocks-server",
    "mikanet.nitrosocks.tap_server",
    "NitroSocks: the server of a tunnel inside TLS that may be intercepted.",
    "nitrosocks-server",
)
nitrosocks_client = ServiceMaker(
    "nitrosocks-client",
    "mikanet.nitrosocks.tap_client",
    "NitroSocks: the client, with its front doors.",
    "nitrosocks-client",
)

host_endpoint = ClientParser("host")
socks5_endpoint = ClientParser("socks5")
connect_endpoint = ClientParser("connect")
mika_endpoint = ClientParser("mika")
obfs_http_endpoint = ClientAndServerParser("obfs-http")
paqet_endpoint = ClientParser("paqet")
kcp_endpoint = ClientAndServerParser("kcp")
pickaxe_endpoint = ClientParser("pickaxe")
nitrosocks_endpoint = ClientParser("nitrosocks")
