// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencomputer/oc/client"
)

// series is checkpoints made one after the other in a store of their own.
type series struct {
	name        string // of a generator in series.py
	what        string
	checkpoints int
	forks       bool // each checkpoint after the first is of a sandbox spawned from it
}

// allSeries are those whose bytes are compared with what others make of the
// same state.
func allSeries() []series {
	return []series{
		{"heap", "a: a Python heap that grows and changes", 7, false},
		{"packages", "b: unpacking and editing package trees", 7, false},
		{"forks", "c: one base, diverging forks", 7, true},
		{"pages", "d: random page updates in a large heap", 7, false},
		{"session", "e: heap, files and processes", 7, false},
	}
}

// noise is 1 GiB of random bytes, and then 1 % of its pages written anew.
var noise = series{name: "noise", what: "1 GiB of random bytes, then 1 % of its pages", checkpoints: 2}

//go:embed series.py
var seriesProgram string

// seriesTemplate is the server's recipe that has a Python.
const seriesTemplate = "small"

const seriesPath = "/series.py"

// make makes the checkpoints on a server of its own below dir, which has ended
// when it returns: their ids, and what each added to the store in bytes.
func (s series) make(ctx context.Context, binary, dir string) (ids []string, added []int64, err error) {
	srv, err := startServer(ctx, binary, dir, settings{})
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err = errors.Join(err, srv.stop(), srv.out.Close()); err != nil {
			err = fmt.Errorf("series %s: %w; the server: %s", s.name, err, srv.log())
		}
	}()
	o := &ours{server: srv}
	if _, err := srv.client.BuildTemplate(ctx, seriesTemplate, nil); err != nil {
		return nil, nil, err
	}
	b, err := s.begin(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	before := int64(0)
	for n := range s.checkpoints {
		at := b
		if s.forks && n > 0 {
			made, err := o.server.client.SpawnCheckpoint(ctx, ids[0], client.SpawnRequest{Count: 1})
			if err != nil {
				return nil, nil, err
			}
			at = box(made.ID)
		}
		if _, err := o.run(ctx, at, "python3", seriesPath, "ask", strconv.Itoa(n)); err != nil {
			return nil, nil, err
		}
		img, err := o.Checkpoint(ctx, at)
		if err != nil {
			return nil, nil, err
		}
		now, err := storedBytes(srv.store())
		if err != nil {
			return nil, nil, err
		}
		ids, added, before = append(ids, img.id), append(added, now-before), now
		if at != b {
			if err := o.Kill(ctx, at); err != nil {
				return nil, nil, err
			}
		}
	}
	return ids, added, nil
}

// begin makes a sandbox in which the program serves.
func (s series) begin(ctx context.Context, o *ours) (box, error) {
	c := o.server.client
	sb, err := c.CreateSandbox(ctx, client.CreateSandboxRequest{
		TemplateID: seriesTemplate, CPUCount: cpus(), MemoryMB: boxMemoryMB, DiskMB: boxDiskMB,
	}, nil)
	if err != nil {
		return "", fmt.Errorf("create: %w", err)
	}
	if err := c.WriteFile(ctx, sb.ID, seriesPath, 0, strings.NewReader(seriesProgram)); err != nil {
		return "", fmt.Errorf("bringing the program in: %w", err)
	}
	_, err = c.StartExec(ctx, sb.ID, client.ExecRequest{
		Cmd: "python3", Args: []string{seriesPath, "serve", s.name}, User: "root", Cwd: "/", Detach: true,
		Envs: map[string]string{"PYTHONHASHSEED": "0"},
	})
	if err != nil {
		return "", fmt.Errorf("starting the program: %w", err)
	}
	return box(sb.ID), nil
}

// storedBytes is what a store takes for its checkpoints, without the engines
// and images that it keeps once.
func storedBytes(store string) (n int64, err error) {
	es, err := os.ReadDir(store)
	if err != nil {
		return 0, err
	}
	for _, e := range es {
		if e.Name() == "engines" || e.Name() == "images" {
			continue
		}
		k, err := treeBytes(filepath.Join(store, e.Name()))
		if err != nil {
			return 0, err
		}
		n += k
	}
	return n, nil
}

// treeBytes is the sum of the sizes of the files at or below path.
func treeBytes(path string) (n int64, err error) {
	err = filepath.Walk(path, func(_ string, st os.FileInfo, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed in the meantime
		}
		if err == nil && st.Mode().IsRegular() {
			n += st.Size()
		}
		return err
	})
	return n, err
}
