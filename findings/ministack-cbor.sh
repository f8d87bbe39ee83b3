#!/usr/bin/env bash
# ministack 1.5.33: CloudWatch takes smithy-rpc-v2-cbor, the protocol of newer SDKs, but decodes it with cbor2, which the
# package needs only for its tests. Without that library it answers PutMetricData with 200 and keeps nothing; the error is
# in its log alone. The same data as JSON are kept.
# Output seen:
#   cbor: 200, metrics: []
#   json: 200, metrics: ['m']
set -uo pipefail
folder=$(mktemp -d) || exit 2
trap 'kill "${server:-}" 2> /dev/null; rm -rf "$folder"' EXIT
python3 -m pip install --quiet --target "$folder" ministack==1.5.33 || exit 2
export PYTHONPATH=$folder HOME=$folder GATEWAY_PORT=45661 SERVICES=monitoring SFTP_ENABLED=0 IOT_MTLS_ENABLED=0
export DOCKER_HOST=unix://$folder/none
python3 -S -m ministack > "$folder/log" 2>&1 &
server=$!
output=$(python3 -c '
import http.client, json, time

def ask(path, headers, body):
    connection = http.client.HTTPConnection("127.0.0.1", 45661, timeout=30)
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()

def metrics():
    target = {"x-amz-target": "GraniteServiceVersion20100801.ListMetrics", "content-type": "application/x-amz-json-1.0"}
    return [metric["MetricName"] for metric in json.loads(ask("/", target, b"{}")[1])["Metrics"]]

for _ in range(300):
    try:
        metrics()
        break
    except OSError:
        time.sleep(0.1)
body = b"\xa2\x69Namespace\x61n\x6aMetricData\x81\xa2\x6aMetricName\x61m\x65Value\x01"
headers = {"smithy-protocol": "rpc-v2-cbor", "content-type": "application/cbor"}
status, _ = ask("/service/GraniteServiceVersion20100801/operation/PutMetricData", headers, body)
print(f"cbor: {status}, metrics: {metrics()}")
headers = {"x-amz-target": "GraniteServiceVersion20100801.PutMetricData", "content-type": "application/x-amz-json-1.0"}
status, _ = ask("/", headers, json.dumps({"Namespace": "n", "MetricData": [{"MetricName": "m", "Value": 1}]}))
print(f"json: {status}, metrics: {metrics()}")
') || { cat "$folder/log"; exit 2; }
echo "$output"
expected="cbor: 200, metrics: []
json: 200, metrics: ['m']"
[[ $output == "$expected" ]] || { echo "changed: see above"; exit 1; }
