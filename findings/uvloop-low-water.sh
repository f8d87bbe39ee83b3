#!/usr/bin/env bash
# uvloop 0.23.0: a transport's default low-water mark is 16 bytes. asyncio's is 16 KiB, a quarter of the high-water mark of
# 64 KiB, which uvloop has, too: its source divides the number of KiB by four and leaves it at that. So a protocol that was
# paused is resumed when nearly nothing is left to send, and a fast sender's link runs dry in between. After
# set_write_buffer_limits(high=64 << 10) both loops have the same.
# Output seen:
#   asyncio (16384, 65536) then (16384, 65536)
#   uvloop (16, 65536) then (16384, 65536)
set -uo pipefail
folder=$(mktemp -d) || exit 2
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --target "$folder" uvloop==0.23.0 || exit 2
output=$(PYTHONPATH=$folder python3 -c '
import asyncio

import uvloop

async def limits():
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    default = writer.transport.get_write_buffer_limits()
    writer.transport.set_write_buffer_limits(high=64 << 10)
    given = writer.transport.get_write_buffer_limits()
    writer.close()
    server.close()
    return default, given

for name, new_loop in (("asyncio", asyncio.new_event_loop), ("uvloop", uvloop.new_event_loop)):
    default, given = new_loop().run_until_complete(limits())
    print(name, default, "then", given)
') || exit 2
echo "$output"
expected='asyncio (16384, 65536) then (16384, 65536)
uvloop (16, 65536) then (16384, 65536)'
[[ $output == "$expected" ]] || { echo "changed: see above"; exit 1; }
