"""The tables of Application Auto Scaling, and the records as their rows. For the transactions of `Store`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

from endpoint.autoscaling.decisions import Cooldown
from endpoint.autoscaling.records import Activity, ScalableTarget, ScalingPolicy

SCHEMA = """
CREATE TABLE IF NOT EXISTS scalable_targets (
    resource_id TEXT PRIMARY KEY, arn TEXT NOT NULL UNIQUE, created_at REAL NOT NULL,
    min_capacity INTEGER NOT NULL, max_capacity INTEGER NOT NULL, role_arn TEXT NOT NULL,
    is_in_suspended INTEGER NOT NULL, is_out_suspended INTEGER NOT NULL, is_scheduled_suspended INTEGER NOT NULL,
    is_unchecked INTEGER NOT NULL,  -- the bounds were set, and the capacity hasn't been brought within them since
    cooldowns TEXT NOT NULL,    -- JSON: Cooldown by the policy's name
    CHECK (0 <= min_capacity AND min_capacity <= max_capacity)
);
CREATE TABLE IF NOT EXISTS scaling_policies (
    resource_id TEXT NOT NULL REFERENCES scalable_targets ON DELETE CASCADE,
    name TEXT NOT NULL, arn TEXT NOT NULL, created_at REAL NOT NULL, type TEXT NOT NULL,
    configuration TEXT NOT NULL,    -- JSON, as it was given
    action_arn TEXT NOT NULL,
    alarms TEXT NOT NULL,           -- JSON: names
    PRIMARY KEY (resource_id, name)
);
CREATE INDEX IF NOT EXISTS scaling_policies_by_arn ON scaling_policies (arn);
CREATE INDEX IF NOT EXISTS scaling_policies_by_action ON scaling_policies (action_arn);
CREATE TABLE IF NOT EXISTS scaling_alarm_changes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL,
    parameters TEXT             -- JSON; NULL: to be deleted
);
CREATE TABLE IF NOT EXISTS scheduled_actions (
    resource_id TEXT NOT NULL REFERENCES scalable_targets ON DELETE CASCADE,
    name TEXT NOT NULL, arn TEXT NOT NULL, created_at REAL NOT NULL,
    schedule TEXT NOT NULL, timezone TEXT, start_at REAL, end_at REAL,
    min_capacity INTEGER, max_capacity INTEGER,
    last_run_at REAL, next_run_at REAL,
    PRIMARY KEY (resource_id, name)
);
CREATE TABLE IF NOT EXISTS scaling_activities (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE, resource_id TEXT NOT NULL, description TEXT NOT NULL, cause TEXT NOT NULL,
    started_at REAL NOT NULL, ended_at REAL, status TEXT NOT NULL, message TEXT, details TEXT,
    not_scaled_reasons TEXT NOT NULL,   -- JSON
    policy TEXT, capacity INTEGER
);
CREATE INDEX IF NOT EXISTS scaling_activities_of_target ON scaling_activities (resource_id, seq);
CREATE INDEX IF NOT EXISTS scaling_activities_under_way ON scaling_activities (seq)
    WHERE status IN ('Pending', 'InProgress');
CREATE TABLE IF NOT EXISTS scalable_target_tags (
    arn TEXT NOT NULL REFERENCES scalable_targets (arn) ON DELETE CASCADE,
    key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (arn, key)
);
CREATE TABLE IF NOT EXISTS scaling_calendar (anchor REAL NOT NULL, scale REAL NOT NULL);
"""


def put(db: sqlite3.Connection, table: str, row: Mapping[str, Any], key: tuple[str, ...] = ()) -> None:
    """Insert a row, or change all columns of the one that has its key, if there is a key."""
    sql = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"
    if key:
        changes = ", ".join(f"{name} = excluded.{name}" for name in row if name not in key)
        sql += f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}"
    db.execute(sql, tuple(row.values()))


def put_tags(db: sqlite3.Connection, arn: str, tags: Mapping[str, str]) -> None:
    rows = [(arn, *tag) for tag in tags.items()]
    db.executemany("INSERT OR REPLACE INTO scalable_target_tags VALUES (?, ?, ?)", rows)


def put_activities(db: sqlite3.Connection, activities: Iterable[Activity]) -> None:
    for activity in activities:
        row = asdict(activity) | {"not_scaled_reasons": json.dumps(activity.not_scaled_reasons)}
        put(db, "scaling_activities", row, ("id",))


def put_alarm_changes(db: sqlite3.Connection, changes: Mapping[str, dict[str, Any] | None]) -> None:
    rows = [(name, None if alarm is None else json.dumps(alarm)) for name, alarm in changes.items()]
    db.executemany("INSERT INTO scaling_alarm_changes (name, parameters) VALUES (?, ?)", rows)


def alarms_of(db: sqlite3.Connection, resource_id: str, name: str) -> tuple[str, ...]:
    sql = "SELECT * FROM scaling_policies WHERE resource_id = ? AND name = ?"
    row = db.execute(sql, (resource_id, name)).fetchone()
    return policy(row).alarms if row else ()


def put_cooldowns(db: sqlite3.Connection, resource_id: str, cooldowns: Mapping[str, Cooldown]) -> None:
    row = (_cooldowns_json(cooldowns), resource_id)
    db.execute("UPDATE scalable_targets SET cooldowns = ? WHERE resource_id = ?", row)


def _cooldowns_json(cooldowns: Mapping[str, Cooldown]) -> str:
    return json.dumps({name: asdict(cooldown) for name, cooldown in cooldowns.items()})


def target_row(target: ScalableTarget) -> dict[str, Any]:
    row = {each.name: getattr(target, each.name) for each in fields(target)}
    return row | {"cooldowns": _cooldowns_json(target.cooldowns)}


def target(row: sqlite3.Row) -> ScalableTarget:
    values: dict[str, Any] = dict(row)
    cooldowns = {name: Cooldown(**value) for name, value in json.loads(values.pop("cooldowns")).items()}
    booleans: dict[str, Any] = {name: bool(values.pop(name)) for name in list(values) if name.startswith("is_")}
    return ScalableTarget(**values, **booleans, cooldowns=cooldowns)


def policy_row(policy: ScalingPolicy) -> dict[str, Any]:
    row = {each.name: getattr(policy, each.name) for each in fields(policy)}
    return row | {"configuration": json.dumps(policy.configuration), "alarms": json.dumps(policy.alarms)}


def policy(row: sqlite3.Row) -> ScalingPolicy:
    texts = {"configuration": json.loads(row["configuration"]), "alarms": tuple(json.loads(row["alarms"]))}
    return ScalingPolicy(**dict(row) | texts)


def activity(row: sqlite3.Row) -> Activity:
    values = dict(row)
    del values["seq"]
    return Activity(**values | {"not_scaled_reasons": tuple(json.loads(row["not_scaled_reasons"]))})
