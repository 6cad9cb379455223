import sys
from pathlib import Path

from twisted.internet.endpoints import clientFromString
from twisted.internet.task import react

from mikanet.crypto.rsa_oaep import load_public
from mikanet.megaki.sazukari import Sazukari


async def main(reactor, server, key):
    client = Sazukari(reactor, clientFromString(reactor, server), load_public(Path(key).read_bytes(), key))
    session = await client.connect()
    sys.stdout.buffer.write(await session.send_message(b"hello"))
    saved = session.saved  # a secret: resumes this session later, without RSA
    await session.close()
    session = await client.resume(saved)
    sys.stdout.buffer.write(await session.send_message(b"hello again"))
    await session.close()


if __name__ == "__main__":
    react(main, sys.argv[1:])  # tcp:SERVER:6363 server.cert
