"""The records of Application Auto Scaling as rows. Knows no rules.

Policies and the alarms that belong to them are kept in two places. So a change of alarms is written with the change of
its policy, in one transaction, and made afterwards: a gateway that is killed in between makes it when it starts again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from endpoint.autoscaling import rows
from endpoint.autoscaling.decisions import Cooldown
from endpoint.autoscaling.records import Activity, AlarmChange, ScalableTarget, ScalingPolicy, ScheduledAction
from endpoint.state.database import Database

ACTIVITIES_KEPT_S = 42 * 86400.0
"""Seconds that activities are kept: AWS's six weeks."""


class Store:
    """Rows of one database. Changes are on the disk when a method returns."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Targets

    async def target(self, resource_id: str) -> ScalableTarget | None:
        found = await self._rows("SELECT * FROM scalable_targets WHERE resource_id = ?", resource_id)
        return rows.target(found[0]) if found else None

    async def target_with_arn(self, arn: str) -> ScalableTarget | None:
        found = await self._rows("SELECT * FROM scalable_targets WHERE arn = ?", arn)
        return rows.target(found[0]) if found else None

    async def targets(self) -> list[ScalableTarget]:
        """Return all targets by their resource ids."""
        return [rows.target(row) for row in await self._rows("SELECT * FROM scalable_targets ORDER BY resource_id")]

    async def add_target(self, target: ScalableTarget, tags: Mapping[str, str]) -> None:
        """Add a target with its tags. Raises sqlite3.IntegrityError if there is one of that resource."""

        def change(db: sqlite3.Connection) -> None:
            rows.put(db, "scalable_targets", rows.target_row(target))
            rows.put_tags(db, target.arn, tags)

        await self._database.write(change)

    async def change_target(self, resource_id: str, **changes: int | bool | str) -> None:
        """Change fields of a target by their names. Raises sqlite3.IntegrityError if the bounds would cross.

        New bounds make it `is_unchecked`.
        """
        if not changes.keys().isdisjoint(("min_capacity", "max_capacity")):
            changes = {"is_unchecked": True, **changes}
        if changes:
            columns = ", ".join(f"{name} = ?" for name in changes)
            await self._execute(
                f"UPDATE scalable_targets SET {columns} WHERE resource_id = ?", *changes.values(), resource_id
            )

    async def delete_target(self, resource_id: str) -> bool:
        """Delete a target with its policies, scheduled actions and tags; its activities stay. Returns whether it was.

        Deletes of the policies' alarms are among `alarm_changes` then.
        """

        def change(db: sqlite3.Connection) -> bool:
            found = db.execute("SELECT * FROM scaling_policies WHERE resource_id = ?", (resource_id,)).fetchall()
            rows.put_alarm_changes(db, {alarm: None for row in found for alarm in rows.policy(row).alarms})
            return bool(db.execute("DELETE FROM scalable_targets WHERE resource_id = ?", (resource_id,)).rowcount)

        return await self._database.write(change)

    # Policies

    async def policy(self, resource_id: str, name: str) -> ScalingPolicy | None:
        found = await self._rows("SELECT * FROM scaling_policies WHERE resource_id = ? AND name = ?", resource_id, name)
        return rows.policy(found[0]) if found else None

    async def policies(self, resource_id: str | None = None) -> list[ScalingPolicy]:
        """Return the policies of one target or of all, by resource id and name."""
        sql = "SELECT * FROM scaling_policies WHERE ?1 IS NULL OR resource_id = ?1 ORDER BY resource_id, name"
        return [rows.policy(row) for row in await self._rows(sql, resource_id)]

    async def policy_of_action(self, action_arn: str) -> ScalingPolicy | None:
        """Return the policy that an alarm's action names: by its own ARN, or by that of its own alarms' action."""
        found = await self._rows("SELECT * FROM scaling_policies WHERE arn = ?1 OR action_arn = ?1", action_arn)
        return rows.policy(found[0]) if found else None

    async def put_policy(self, policy: ScalingPolicy, new_alarms: Sequence[dict[str, Any]] = ()) -> None:
        """Add a policy to its target, or replace one. Raises sqlite3.IntegrityError if the target is gone.

        `alarm_changes` has then puts of the new alarms (parameters of PutMetricAlarm), and deletes of those that the
        policy had and has no longer.
        """

        def change(db: sqlite3.Connection) -> None:
            old = rows.alarms_of(db, policy.resource_id, policy.name)
            rows.put(db, "scaling_policies", rows.policy_row(policy), ("resource_id", "name"))
            rows.put_alarm_changes(db, {alarm: None for alarm in old if alarm not in policy.alarms})
            rows.put_alarm_changes(db, {alarm["AlarmName"]: alarm for alarm in new_alarms})

        await self._database.write(change)

    async def delete_policy(self, resource_id: str, name: str) -> None:
        """Delete a policy with its cooldown; `alarm_changes` has then the deletes of its alarms."""

        def change(db: sqlite3.Connection) -> None:
            row = db.execute("SELECT * FROM scalable_targets WHERE resource_id = ?", (resource_id,)).fetchone()
            if row:
                left = {other: cooldown for other, cooldown in rows.target(row).cooldowns.items() if other != name}
                rows.put_cooldowns(db, resource_id, left)
            rows.put_alarm_changes(db, {alarm: None for alarm in rows.alarms_of(db, resource_id, name)})
            db.execute("DELETE FROM scaling_policies WHERE resource_id = ? AND name = ?", (resource_id, name))

        await self._database.write(change)

    async def alarm_changes(self) -> list[AlarmChange]:
        """Return the changes that are still to be made, in their order."""
        found = await self._rows("SELECT * FROM scaling_alarm_changes ORDER BY seq")
        return [
            AlarmChange(**dict(row) | {"parameters": json.loads(row["parameters"]) if row["parameters"] else None})
            for row in found
        ]

    async def forget_alarm_change(self, change: AlarmChange) -> None:
        """Forget a change that has been made."""
        await self._execute("DELETE FROM scaling_alarm_changes WHERE seq = ?", change.seq)

    # Scheduled actions

    async def action(self, resource_id: str, name: str) -> ScheduledAction | None:
        found = await self._rows(
            "SELECT * FROM scheduled_actions WHERE resource_id = ? AND name = ?", resource_id, name
        )
        return ScheduledAction(**dict(found[0])) if found else None

    async def actions(self, resource_id: str | None = None) -> list[ScheduledAction]:
        """Return the scheduled actions of one target or of all, by resource id and name."""
        sql = "SELECT * FROM scheduled_actions WHERE ?1 IS NULL OR resource_id = ?1 ORDER BY resource_id, name"
        return [ScheduledAction(**dict(row)) for row in await self._rows(sql, resource_id)]

    async def put_action(self, action: ScheduledAction) -> None:
        """Add an action to its target, or replace one. Raises sqlite3.IntegrityError if the target is gone."""
        await self._database.write(
            lambda db: rows.put(db, "scheduled_actions", asdict(action), ("resource_id", "name")),
        )

    async def delete_action(self, resource_id: str, name: str) -> None:
        await self._execute("DELETE FROM scheduled_actions WHERE resource_id = ? AND name = ?", resource_id, name)

    async def finish_run(
        self,
        action: ScheduledAction,
        *,
        ran_at: float,
        next_run_at: float | None,
        sets_bounds: bool,
        needs_check: bool = False,
        activities: Iterable[Activity] = (),
    ) -> bool:
        """Write down in one transaction that `action`, as it was read, ran for the time `ran_at`, and when it is next.

        With `sets_bounds` the target's bounds become the action's, with `needs_check` as well it `is_unchecked`.
        Returns False, with nothing written, if the action was deleted or replaced in the meantime. Raises
        sqlite3.IntegrityError if the target's bounds would cross.
        """

        def change(db: sqlite3.Connection) -> bool:
            found = db.execute(
                "UPDATE scheduled_actions SET last_run_at = ?, next_run_at = ? "
                "WHERE resource_id = ? AND name = ? AND schedule = ? AND next_run_at IS ?",
                (ran_at, next_run_at, action.resource_id, action.name, action.schedule, action.next_run_at),
            ).rowcount
            if found and sets_bounds:
                db.execute(
                    "UPDATE scalable_targets SET min_capacity = coalesce(?, min_capacity), "
                    "max_capacity = coalesce(?, max_capacity), is_unchecked = max(is_unchecked, ?) "
                    "WHERE resource_id = ?",
                    (action.min_capacity, action.max_capacity, needs_check, action.resource_id),
                )
            if found:
                rows.put_activities(db, activities)
            return bool(found)

        return await self._database.write(change)

    # Activities

    async def record(
        self, resource_id: str, activities: Iterable[Activity], cooldowns: Mapping[str, Cooldown] | None = None
    ) -> None:
        """Add activities, or change those that are there, and with them all cooldowns of the target unless None."""

        def change(db: sqlite3.Connection) -> None:
            rows.put_activities(db, activities)
            if cooldowns is not None:
                rows.put_cooldowns(db, resource_id, cooldowns)

        await self._database.write(change)

    async def finish_check(self, target: ScalableTarget, activities: Iterable[Activity]) -> None:
        """Write down that the capacity is within the bounds of `target`, or what brings it there."""

        def change(db: sqlite3.Connection) -> None:
            rows.put_activities(db, activities)
            db.execute(  # not if it has other bounds by now
                "UPDATE scalable_targets SET is_unchecked = 0 "
                "WHERE resource_id = ? AND min_capacity = ? AND max_capacity = ?",
                (target.resource_id, target.min_capacity, target.max_capacity),
            )

        await self._database.write(change)

    async def activities(
        self,
        resource_id: str | None = None,
        *,
        has_not_scaled: bool = True,
        before: str | None = None,
        limit: int = -1,
    ) -> list[Activity]:
        """Return at most `limit` activities, the newest first, of those that began before the one with an id.

        Those with a NotScaledReason are among them if `has_not_scaled`.
        """
        of_target = "1" if resource_id is None else "resource_id = ?1"  # by the index
        sql = (
            f"SELECT * FROM scaling_activities WHERE {of_target} AND (?2 OR not_scaled_reasons = '[]') "
            "AND (?3 IS NULL OR seq < (SELECT seq FROM scaling_activities WHERE id = ?3)) ORDER BY seq DESC LIMIT ?4"
        )
        return [rows.activity(row) for row in await self._rows(sql, resource_id, has_not_scaled, before, limit)]

    async def open_activities(self) -> list[Activity]:
        """Return the activities that are under way, the oldest first."""
        sql = "SELECT * FROM scaling_activities WHERE status IN ('Pending', 'InProgress') ORDER BY seq"
        return [rows.activity(row) for row in await self._rows(sql)]

    async def drop_old_activities(self, now: float) -> None:
        """Delete the activities that began six weeks ago and aren't under way."""
        await self._execute(
            "DELETE FROM scaling_activities WHERE started_at < ? AND status NOT IN ('Pending', 'InProgress')",
            now - ACTIVITIES_KEPT_S,
        )

    # Tags

    async def tags(self, arn: str) -> dict[str, str]:
        found = await self._rows("SELECT key, value FROM scalable_target_tags WHERE arn = ? ORDER BY key", arn)
        return {row["key"]: row["value"] for row in found}

    async def add_tags(self, arn: str, tags: Mapping[str, str]) -> None:
        await self._database.write(lambda db: rows.put_tags(db, arn, tags))

    async def remove_tags(self, arn: str, keys: Iterable[str]) -> None:
        pairs = [(arn, key) for key in keys]
        sql = "DELETE FROM scalable_target_tags WHERE arn = ? AND key = ?"
        await self._database.write(lambda db: db.executemany(sql, pairs))

    # The calendar

    async def anchor(self) -> tuple[float, float] | None:
        """Return the wall-clock time at which the calendar's scale was first used, and that scale."""
        found = await self._rows("SELECT anchor, scale FROM scaling_calendar")
        return (found[0]["anchor"], found[0]["scale"]) if found else None

    async def set_anchor(self, anchor: float, scale: float, actions: Iterable[ScheduledAction]) -> tuple[float, float]:
        """Begin a calendar, write down when `actions` are due in it, and return its anchor and scale.

        If another call has begun one of that scale in the meantime, this is its anchor.
        """
        changes = [(action.next_run_at, action.resource_id, action.name) for action in actions]

        def change(db: sqlite3.Connection) -> tuple[float, float]:
            kept = db.execute("SELECT anchor FROM scaling_calendar WHERE scale = ?", (scale,)).fetchone()
            if kept:
                return kept["anchor"], scale
            db.execute("DELETE FROM scaling_calendar")
            db.execute("INSERT INTO scaling_calendar VALUES (?, ?)", (anchor, scale))
            db.executemany("UPDATE scheduled_actions SET next_run_at = ? WHERE resource_id = ? AND name = ?", changes)
            return anchor, scale

        return await self._database.write(change)

    async def _rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        return await self._database.read(lambda db: db.execute(sql, values).fetchall())

    async def _execute(self, sql: str, *values: Any) -> None:
        await self._database.write(lambda db: db.execute(sql, values))
