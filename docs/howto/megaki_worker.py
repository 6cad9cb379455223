import arca

seen = 0


def on_init():
    arca.log("ready")


def on_handle(request: bytes) -> bytes:
    global seen
    seen += 1
    return request.upper() + f" from {arca.client_ip}, my number {seen}\n".encode()
