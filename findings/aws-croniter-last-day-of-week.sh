#!/usr/bin/env bash
# aws-croniter 2.1.1: `L` in AWS's day-of-week field is accepted, and the schedule never runs. AWS documents that it is
# the last day of the week, Saturday, and the package says that it handles `L`; `7` and `SAT` in its place do run.
# Output seen:
#   0 9 ? * L * [None]
#   0 9 ? * 7 * ['2027-01-16 09:00']
#   0 9 ? * SAT * ['2027-01-16 09:00']
set -uo pipefail
folder=$(mktemp -d) || exit 2
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --target "$folder" aws-croniter==2.1.1 python-dateutil==2.9.0.post0 six==1.17.0 || exit 2
output=$(PYTHONPATH=$folder python3 -c '
from datetime import datetime, timezone

from aws_croniter import AwsCroniter

friday = datetime(2027, 1, 15, 12, tzinfo=timezone.utc)
for day in ("L", "7", "SAT"):
    fields = f"0 9 ? * {day} *"
    print(fields, [at and f"{at:%Y-%m-%d %H:%M}" for at in AwsCroniter(fields).get_next(friday, 1)])
') || exit 2
echo "$output"
expected="0 9 ? * L * [None]
0 9 ? * 7 * ['2027-01-16 09:00']
0 9 ? * SAT * ['2027-01-16 09:00']"
[[ $output == "$expected" ]] || { echo "changed: see above"; exit 1; }
