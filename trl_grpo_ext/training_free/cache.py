"""Every reply that was paid for, by the content of its request: what makes a killed run continue where it was.

One SQLite file, a reply per commit, so that a killed process loses nothing that had arrived. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

from trl_grpo_ext.training_free.budget import Budget, Spending
from trl_grpo_ext.training_free.protocol import ChatReply, ChatRequest

_TABLES = """
CREATE TABLE IF NOT EXISTS calls (
  key TEXT PRIMARY KEY, model TEXT NOT NULL, text TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL, finish_reason TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failures (number INTEGER PRIMARY KEY, model TEXT NOT NULL, message TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rewards (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


def content_key(*parts: Any) -> str:
    """Return the SHA-256, in hexadecimal digits, of parts that JSON can hold; of others that of their `str`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def request_key(model: str, request: ChatRequest) -> str:
    """Return the key of a request: model, messages, temperature, length and seed."""
    return content_key(model, request.messages, float(request.temperature), request.max_tokens, request.seed)


def open_database(path: Path | None, tables: str, synchronous: str = "NORMAL") -> sqlite3.Connection:
    """Open the run's file, or one in memory, with these tables in it.

    Args:
        path: of the file.
        tables: SQL.
        synchronous: NORMAL keeps what was committed when the process dies, FULL also when the machine does.

    Raises:
        ValueError: the file is not a database.
    """
    connection = sqlite3.connect(path or ":memory:", timeout=30, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.executescript(tables)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise ValueError(f"{path} can't be used as the file of a run ({error}); give another output_dir.") from error
    return connection


class CallCache:
    """Replies and rewards by content, and what they cost.

    Args:
        path: the file, made if it is missing; None keeps everything in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._connection = open_database(path, _TABLES)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def get(self, key: str) -> ChatReply | None:
        """Return the reply to a request that was answered before."""
        columns = "text, prompt_tokens, completion_tokens, finish_reason"
        row = self._connection.execute(f"SELECT {columns} FROM calls WHERE key = ?", (key,)).fetchone()
        return None if row is None else ChatReply(*row)

    def put(self, key: str, model: str, reply: ChatReply) -> ChatReply:
        """Keep a reply; returns it as `get` will, with question marks for half surrogate pairs, which have no UTF-8."""
        kept = replace(reply, text=reply.text.encode("utf-8", "replace").decode())
        row = (key, model, kept.text, kept.prompt_tokens, kept.completion_tokens, kept.finish_reason)
        self._connection.execute("INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?, ?, ?)", row)
        return kept

    def add_failure(self, model: str, message: str) -> None:
        """Count a failed call."""
        text = message.encode("utf-8", "replace").decode()
        self._connection.execute("INSERT INTO failures (model, message) VALUES (?, ?)", (model, text))

    def rewards(self, key: str) -> list[float | None] | None:
        """Return the rewards of a call of the reward function that was made before."""
        row = self._connection.execute("SELECT value FROM rewards WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put_rewards(self, key: str, rewards: list[float | None]) -> None:
        """Keep the rewards of one call."""
        self._connection.execute("INSERT OR REPLACE INTO rewards VALUES (?, ?)", (key, json.dumps(rewards)))

    def spent(self, budget: Budget) -> Spending:
        """Return what all replies and failures in the file have cost, at these prices."""
        failures = self._connection.execute("SELECT count(*) FROM failures").fetchone()[0]
        total = Spending(calls=failures, failures=failures)
        rows = self._connection.execute(
            "SELECT model, count(*), sum(prompt_tokens), sum(completion_tokens) FROM calls GROUP BY model"
        )
        for model, calls, prompt_tokens, completion_tokens in rows.fetchall():
            price = budget.price(model)
            total.calls += calls
            total.prompt_tokens += prompt_tokens
            total.completion_tokens += completion_tokens
            total.cost += price.of(prompt_tokens, completion_tokens) if price else 0.0
        return total
