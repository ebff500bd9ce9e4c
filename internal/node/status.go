// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"

	"github.com/opencomputer/oc/internal/fault"
	"github.com/opencomputer/oc/internal/meta"
)

// Status is what `oc status` says.
type Status struct {
	Up bool `json:"up"`
	Instance
	Counts *Counts `json:"counts,omitempty"` // nil for who may not read the metadata
}

// Counts is what the data directory holds.
type Counts struct {
	Running     int `json:"running"` // sandboxes
	Error       int `json:"error"`   // sandboxes
	Checkpoints int `json:"checkpoints"`
	Templates   int `json:"templates"`
}

// OpenMeta opens only the metadata of a data directory that exists.
func OpenMeta(ctx context.Context, s Settings) (*meta.DB, error) {
	if _, err := os.Stat(s.DataDir); errors.Is(err, fs.ErrNotExist) && s.Database == "" {
		return nil, fault.New(fault.NotFound, "there is no data directory %s", s.DataDir).WithHint("start the server once (`oc up`), or give --data-dir")
	}
	return meta.Open(ctx, database(s), slog.New(slog.DiscardHandler))
}

// ReadStatus finds out what is there, whether or not a server runs.
func ReadStatus(ctx context.Context, s Settings) (Status, error) {
	st := Status{Instance: Instance{DataDir: s.DataDir}}
	i, err := FindInstance(s.DataDir)
	if err != nil {
		return st, err
	}
	if i != nil {
		st.Up, st.Instance = true, *i
	}
	db, err := OpenMeta(ctx, s)
	switch {
	case fault.Is(err, fault.NotFound):
		st.Counts = &Counts{}
		return st, nil
	case errors.Is(err, fs.ErrPermission):
		return st, nil
	case err != nil:
		return st, err
	}
	defer db.Close()
	st.Counts = &Counts{}
	sandboxes, err := db.SandboxesAnyOrg(ctx, meta.SandboxRunning, meta.SandboxError)
	if err != nil {
		return st, err
	}
	for _, sb := range sandboxes {
		if sb.State == meta.SandboxRunning {
			st.Counts.Running++
		} else {
			st.Counts.Error++
		}
	}
	checkpoints, err := db.CheckpointsAnyOrg(ctx, meta.CheckpointReady)
	if err != nil {
		return st, err
	}
	templates, err := db.TemplatesAnyOrg(ctx)
	st.Counts.Checkpoints, st.Counts.Templates = len(checkpoints), len(templates)
	return st, err
}
