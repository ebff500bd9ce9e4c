// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencomputer/oc/internal/durable"
	"github.com/opencomputer/oc/internal/fault"
)

// Dir is a store in a directory.
type Dir struct{ root string }

// stagingDir holds what is being removed, or was being written by the builds
// that wrote this format; its contents are never part of the store.
const stagingDir = ".staging"

// OpenDir opens or makes the store and removes what a crash left half done.
// There must be only one Dir per directory at a time.
func OpenDir(root string) (*Dir, error) {
	d := &Dir{root: root}
	if err := os.RemoveAll(d.staging("")); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := durable.MkdirAll(d.staging(""), 0o700); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return d, nil
}

// Path is the directory of a checkpoint, for OpenImage in another process.
func (d *Dir) Path(id string) string { return filepath.Join(d.root, id) }

func (d *Dir) staging(name string) string { return filepath.Join(d.root, stagingDir, name) }

// Open opens a checkpoint: see OpenImage.
func (d *Dir) Open(id string) (*Image, error) {
	if !validID(id) {
		return nil, fault.New(fault.NotFound, "checkpoint %s has no data in the store", id)
	}
	return OpenImage(d.Path(id))
}

// Delete removes a checkpoint and gives its space back, at once or when the
// last process that reads it ends. A missing one is nil.
func (d *Dir) Delete(id string) error {
	if !validID(id) {
		return fmt.Errorf("store: %q is not a checkpoint id", id)
	}
	grave := d.staging("deleted-" + id)
	err := os.RemoveAll(grave) // of an earlier deletion that was not carried through
	if err == nil {
		err = durable.Rename(d.Path(id), grave)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err := errors.Join(err, os.RemoveAll(grave)); err != nil {
		return fmt.Errorf("store: deleting checkpoint %s: %w", id, err)
	}
	return nil
}

// List names the checkpoints that the store holds, damaged ones too, in order.
func (d *Dir) List() ([]string, error) {
	es, err := os.ReadDir(d.root)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	var ids []string
	for _, e := range es {
		if e.IsDir() && validID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// validID keeps ids from being paths.
func validID(id string) bool {
	return id != "" && !strings.ContainsAny(id, "/\x00") && id[0] != '.'
}
