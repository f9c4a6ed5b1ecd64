"""A boot firmware's DHCP client, run in a namespace: prints every reply as a JSON line.

``python -m tests.support.network.dhcp_client SECONDS [discover|request] [ARCHITECTURE] [REPEATS]``
"""

from __future__ import annotations

import json
import select
import sys
import time

from sender.netboot.serve.dhcp_codec import (
    BROADCAST,
    DhcpMessage,
    MessageType,
    Option,
    decode_dhcp_untrusted,
    encode_dhcp,
)
from sender.netboot.serve.dhcp_service import open_dhcp_socket
from sender.netboot.serve.proxy_dhcp import CLIENT_PORT, PROXY_PORT, SERVER_PORT
from tests.support.network.dhcp_messages import client_message
from tests.support.network.lab import INTERFACE


def main(seconds: float, kind: str, architecture: int, repeats: int) -> None:
    client = "HTTPClient" if architecture in (16, 19) else "PXEClient"
    vendor_class = f"{client}:Arch:{architecture:05d}:UNDI:003016".encode()
    sock = open_dhcp_socket(INTERFACE, CLIENT_PORT)
    messages: list[tuple[DhcpMessage, str, int]]
    if kind == "request":
        request = client_message(MessageType.REQUEST, architecture=architecture, vendor_class=vendor_class)
        messages = [(request, "10.77.0.1", PROXY_PORT)]
    else:
        discover = client_message(architecture=architecture, vendor_class=vendor_class)
        messages = [(discover, str(BROADCAST), SERVER_PORT)]
    with sock:
        for _ in range(repeats):
            for message, address, port in messages:
                sock.sendto(encode_dhcp(message), (address, port))
            deadline = time.monotonic() + seconds
            while (left := deadline - time.monotonic()) > 0 and select.select([sock], [], [], left)[0]:
                data, source = sock.recvfrom(4096)
                reply = decode_dhcp_untrusted(data)
                if reply.transaction_id != messages[0][0].transaction_id or reply.message_type is None:
                    continue
                line = {
                    "event": "reply",
                    "type": reply.message_type.name,
                    "server": str(reply.address_option(Option.SERVER_IDENTIFIER)),
                    "source": source[0],
                    "address": str(reply.your_address),
                    "file": reply.boot_file_name,
                    "next_server": reply.next_server,
                }
                print(json.dumps(line), flush=True)
    print(json.dumps({"event": "result", "ok": True}), flush=True)


if __name__ == "__main__":
    arguments = [*sys.argv[1:], *("discover", "7", "1")[len(sys.argv) - 2 :]]
    main(float(arguments[0]), arguments[1], int(arguments[2]), int(arguments[3]))
