#!/usr/bin/env bash
# ministack 1.5.33: signatures aren't checked unless AUTH is set, so any secret key will do; but those of presigned URLs of
# S3 (version 4) are checked all the same, against the secret "test" of its own. A client with another secret puts and gets
# objects, and each URL that it presigns is a 403 (SignatureDoesNotMatch).
# Output seen:
#   secret test: put 200, presigned 200
#   secret mine: put 200, presigned 403
set -uo pipefail
folder=$(mktemp -d) || exit 2
trap 'kill "${server:-}" 2> /dev/null; rm -rf "$folder"' EXIT
python3 -m pip install --quiet --target "$folder" ministack==1.5.33 botocore==1.43.106 || exit 2
export PYTHONPATH=$folder HOME=$folder GATEWAY_PORT=45662 SERVICES=s3 SFTP_ENABLED=0 IOT_MTLS_ENABLED=0
export DOCKER_HOST=unix://$folder/none AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null
unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AUTH
python3 -m ministack > "$folder/log" 2>&1 &
server=$!
output=$(python3 -c '
import socket, time, urllib.error, urllib.request
import botocore.session
from botocore.config import Config

for _ in range(300):
    try:
        socket.create_connection(("127.0.0.1", 45662)).close()
        break
    except OSError:
        time.sleep(0.1)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for secret in ("test", "mine"):
    s3 = botocore.session.Session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url="http://127.0.0.1:45662",
        aws_access_key_id="test",
        aws_secret_access_key=secret,
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}, proxies={}),
    )
    s3.create_bucket(Bucket=secret)
    put = s3.put_object(Bucket=secret, Key="k", Body=b"x")["ResponseMetadata"]["HTTPStatusCode"]
    try:
        got = opener.open(s3.generate_presigned_url("get_object", {"Bucket": secret, "Key": "k"})).status
    except urllib.error.HTTPError as error:
        got = error.code
    print(f"secret {secret}: put {put}, presigned {got}")
') || { cat "$folder/log"; exit 2; }
echo "$output"
expected='secret test: put 200, presigned 200
secret mine: put 200, presigned 403'
[[ $output == "$expected" ]] || { echo "changed: see above"; exit 1; }
