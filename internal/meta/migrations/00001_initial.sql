-- SPDX-License-Identifier: Apache-2.0
--
-- The statements run unchanged on SQLite and PostgreSQL; SQLite takes any name
-- as a type. TIMESTAMP holds UTC in both. A migration that has been released
-- is never edited: the next change is a file of its own.

-- +goose Up
CREATE TABLE orgs (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    created_at TIMESTAMP NOT NULL
);

CREATE TABLE keys (
    id         TEXT PRIMARY KEY,
    org_id     TEXT NOT NULL REFERENCES orgs (id),
    name       TEXT NOT NULL,
    prefix     TEXT NOT NULL,
    hash       TEXT NOT NULL UNIQUE,
    created_at TIMESTAMP NOT NULL,
    revoked_at TIMESTAMP
);

-- org_id is '' for a built-in template, so it references nothing.
CREATE TABLE templates (
    id           TEXT PRIMARY KEY,
    org_id       TEXT NOT NULL,
    name         TEXT NOT NULL,
    status       TEXT NOT NULL,
    error_msg    TEXT NOT NULL,
    tree_hash    TEXT NOT NULL,
    size_bytes   BIGINT NOT NULL,
    created_at   TIMESTAMP NOT NULL,
    last_used_at TIMESTAMP
);
CREATE UNIQUE INDEX templates_name ON templates (org_id, name);
CREATE INDEX templates_tree ON templates (tree_hash);

CREATE TABLE sandboxes (
    id              TEXT PRIMARY KEY,
    org_id          TEXT NOT NULL REFERENCES orgs (id),
    name            TEXT NOT NULL,
    template        TEXT NOT NULL,
    state           TEXT NOT NULL,
    reason          TEXT NOT NULL,
    generation_id   TEXT NOT NULL,
    from_checkpoint TEXT NOT NULL,
    last_checkpoint TEXT NOT NULL,
    cpus            BIGINT NOT NULL,
    memory_mb       BIGINT NOT NULL,
    disk_mb         BIGINT NOT NULL,
    timeout_sec     BIGINT NOT NULL,
    envs            JSON NOT NULL,
    metadata        JSON NOT NULL,
    created_at      TIMESTAMP NOT NULL,
    started_at      TIMESTAMP NOT NULL,
    last_active_at  TIMESTAMP NOT NULL,
    stopped_at      TIMESTAMP
);
CREATE INDEX sandboxes_org ON sandboxes (org_id, created_at);
CREATE INDEX sandboxes_state ON sandboxes (state);

-- sandbox_id is NULL for a run that is not a sandbox yet. A sandbox row cannot
-- go while a run of it is recorded.
CREATE TABLE generations (
    id         TEXT PRIMARY KEY,
    sandbox_id TEXT REFERENCES sandboxes (id),
    state      TEXT NOT NULL,
    build      TEXT NOT NULL,
    process    BYTEA,
    image_hash TEXT NOT NULL,
    checkpoint TEXT NOT NULL,
    timeline   TEXT NOT NULL,
    pager      BYTEA,
    cpus       BIGINT NOT NULL,
    memory_mb  BIGINT NOT NULL,
    disk_mb    BIGINT NOT NULL,
    created_at TIMESTAMP NOT NULL
);
CREATE INDEX generations_sandbox ON generations (sandbox_id);
CREATE INDEX generations_image ON generations (image_hash);

CREATE TABLE checkpoints (
    id          TEXT PRIMARY KEY,
    org_id      TEXT NOT NULL REFERENCES orgs (id),
    sandbox_id  TEXT NOT NULL REFERENCES sandboxes (id),
    name        TEXT NOT NULL,
    kind        TEXT NOT NULL,
    status      TEXT NOT NULL,
    error_msg   TEXT NOT NULL,
    automatic   BOOLEAN NOT NULL,
    unverified  BOOLEAN NOT NULL,
    parent_id   TEXT NOT NULL,
    size_bytes  BIGINT NOT NULL,
    added_bytes BIGINT NOT NULL,
    template    TEXT NOT NULL,
    tree_hash   TEXT NOT NULL,
    image_hash  TEXT NOT NULL,
    build       TEXT NOT NULL,
    cpus        BIGINT NOT NULL,
    memory_mb   BIGINT NOT NULL,
    disk_mb     BIGINT NOT NULL,
    envs        JSON NOT NULL,
    created_at  TIMESTAMP NOT NULL,
    ready_at    TIMESTAMP,
    failed_at   TIMESTAMP
);
-- A failed checkpoint does not keep its name, nor does one that is going.
CREATE UNIQUE INDEX checkpoints_name ON checkpoints (sandbox_id, name)
    WHERE status <> 'failed' AND status <> 'deleting';
CREATE INDEX checkpoints_sandbox ON checkpoints (sandbox_id, created_at);
CREATE INDEX checkpoints_org ON checkpoints (org_id, created_at);
CREATE INDEX checkpoints_status ON checkpoints (status);
CREATE INDEX checkpoints_image ON checkpoints (image_hash);
CREATE INDEX checkpoints_tree ON checkpoints (tree_hash);

CREATE TABLE images (
    hash       TEXT PRIMARY KEY,
    tree_hash  TEXT NOT NULL,
    agent_hash TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    created_at TIMESTAMP NOT NULL
);
CREATE INDEX images_tree ON images (tree_hash);
