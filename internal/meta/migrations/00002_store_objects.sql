-- SPDX-License-Identifier: Apache-2.0
-- +goose Up

-- The checkpoint's object in the page store; '' for one of the first format,
-- which is a directory of its own.
ALTER TABLE checkpoints ADD COLUMN object TEXT NOT NULL DEFAULT '';
