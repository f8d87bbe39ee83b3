#!/usr/bin/env bash
# sagemaker-core 2.27.0 (the session of SageMaker's SDK 3; SDK 2.257.7 does the same): Session.default_bucket() asks STS for
# the account at AWS's own address, although AWS_ENDPOINT_URL names another one, which boto3's own STS client, and every
# other client of the same session, calls. With test credentials and a local stand-in for AWS the request leaves the
# machine. A name for the bucket, Session(default_bucket=…), avoids it. Nothing is sent here: a hook of botocore's takes
# each request before it leaves.
# Output seen:
#   boto3 http://127.0.0.1:9/
#   Session.default_bucket https://sts.us-east-1.amazonaws.com/
set -uo pipefail
folder=$(mktemp -d) || exit 2
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --target "$folder" sagemaker-core==2.27.0 || exit 2
export AWS_ENDPOINT_URL=http://127.0.0.1:9 AWS_DEFAULT_REGION=us-east-1 AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test
export AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null
output=$(PYTHONPATH=$folder python3 2> "$folder/errors" -c '
import boto3
from sagemaker.core.helper.session_helper import Session

class Taken(Exception):
    pass

def take(request, **_):
    raise Taken(request.url)

session = boto3.Session()
session.events.register("before-send", take)
for name, call in (
    ("boto3", lambda: session.client("sts").get_caller_identity()),
    ("Session.default_bucket", lambda: Session(boto_session=session).default_bucket()),
):
    try:
        call()
    except Taken as taken:
        print(name, taken)
') || { cat "$folder/errors"; exit 2; }
echo "$output"
expected='boto3 http://127.0.0.1:9/
Session.default_bucket https://sts.us-east-1.amazonaws.com/'
[[ $output == "$expected" ]] || { echo "changed: see above"; exit 1; }
