// SPDX-License-Identifier: Apache-2.0

// Package durable makes files that survive a power cut.
//
// Every promise of durability in oc goes through this package: a file becomes
// visible complete or not at all (temporary name, fsync, rename, fsync of the
// directory), and what a call has returned for is on disk.
//
// A Disk is the seam. The zero Disk works on the real file system; one made by
// a Recorder does the same and also notes each step, so that a test can rebuild
// every state which a power cut could have left (Recorder.Replay) or make a
// step fail. The package-level functions are the zero Disk's.
//
// The package knows nothing of what is in the files and imports nothing of oc.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// TempPrefix begins the names of the files that WriteFile has not finished. A
// file of that name that nobody is writing was left by a crash and can go.
const TempPrefix = ".durable-"

// Disk makes durable changes. The zero value is ready for use; a Disk may be
// used by many goroutines.
type Disk struct {
	before func(Step) error // nil, or a Recorder's
}

// step announces a step; an error means that it must not be done.
func (d Disk) step(s Step) error {
	if d.before == nil {
		return nil
	}
	return d.before(s)
}

// WriteFile makes path a regular file with the data and exactly the permission
// bits of mode, replacing what was there. On an error path is as it was before,
// except when only the last sync of the directory failed: then either version
// may be found after a power cut.
func (d Disk) WriteFile(path string, data []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), TempPrefix+"*")
	if err != nil {
		return err
	}
	tmp := f.Name()
	defer func() {
		if err != nil {
			os.Remove(tmp)
		}
	}()
	err = d.step(Step{Kind: StepWrite, Path: tmp, Data: data, Mode: mode})
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return d.Rename(tmp, path)
}

// Create makes a new file of what fill writes, for content that is too large
// for WriteFile, and returns when the content is durable; the name is with the
// next SyncDir of its directory. path must not exist; after an error it does
// not either.
func (d Disk) Create(path string, mode fs.FileMode, fill func(*os.File) error) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	err = fill(f)
	if err == nil {
		err = d.created(path, mode)
	}
	if err == nil {
		err = f.Sync() // of the descriptor written to: it reports what writing back failed at
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// created announces the steps of Create to a recorder, content included.
func (d Disk) created(path string, mode fs.FileMode) error {
	if d.before == nil {
		return nil
	}
	data, err := os.ReadFile(path)
	if err == nil {
		err = d.step(Step{Kind: StepWrite, Path: path, Data: data, Mode: mode})
	}
	if err == nil {
		err = d.step(Step{Kind: StepSync, Path: path})
	}
	return err
}

// Rename moves old to new, replacing a file of that name, and returns when the
// move is durable. A regular file's content is made durable first; whoever
// renames a directory calls SyncTree on it before. Both names must be on one
// file system.
func (d Disk) Rename(old, new string) error {
	st, err := os.Lstat(old)
	if err != nil {
		return err
	}
	if st.Mode().IsRegular() {
		if err := d.syncPath(old); err != nil {
			return err
		}
	}
	if err := d.step(Step{Kind: StepRename, Path: old, New: new}); err != nil {
		return fmt.Errorf("rename %s: %w", old, err)
	}
	if err := os.Rename(old, new); err != nil {
		return err
	}
	if err := d.SyncDir(filepath.Dir(new)); err != nil {
		return err
	}
	if filepath.Dir(old) != filepath.Dir(new) {
		return d.SyncDir(filepath.Dir(old))
	}
	return nil
}

// Link gives a file of Create the name new as well, and returns when that is
// durable. It is Rename that replaces nothing: where new exists it fails with
// fs.ErrExist. Both names must be on one file system.
func (d Disk) Link(old, new string) error {
	if err := d.step(Step{Kind: StepLink, Path: old, New: new}); err != nil {
		return fmt.Errorf("link %s: %w", old, err)
	}
	if err := os.Link(old, new); err != nil {
		return err
	}
	return d.SyncDir(filepath.Dir(new))
}

// Remove removes a file or an empty directory and returns when that is durable.
// What is not there is no error.
func (d Disk) Remove(path string) error {
	if err := d.step(Step{Kind: StepRemove, Path: path}); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.SyncDir(filepath.Dir(path))
}

// MkdirAll makes a directory and its missing parents and returns when they are
// durable.
func (d Disk) MkdirAll(path string, mode fs.FileMode) error {
	path = filepath.Clean(path)
	if st, err := os.Stat(path); err == nil {
		if !st.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: path, Err: unix.ENOTDIR}
		}
		return nil
	}
	parent := filepath.Dir(path)
	if err := d.MkdirAll(parent, mode); err != nil {
		return err
	}
	if err := d.step(Step{Kind: StepMkdir, Path: path, Mode: mode}); err != nil {
		return fmt.Errorf("mkdir %s: %w", path, err)
	}
	if err := os.Mkdir(path, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return d.SyncDir(parent)
}

// SyncDir makes the names in a directory durable: what was created, renamed or
// removed in it.
func (d Disk) SyncDir(dir string) error { return d.syncPath(dir) }

// syncPath is fsync of a file or a directory.
func (d Disk) syncPath(path string) error {
	if err := d.step(Step{Kind: StepSync, Path: path}); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// SyncTree makes a directory and everything below it durable. It flushes the
// whole file system that holds the directory, because thousands of single
// fsyncs cost far more; so it may take as long as others' unwritten data need.
func (d Disk) SyncTree(dir string) error {
	if err := d.step(Step{Kind: StepSyncTree, Path: dir}); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return &fs.PathError{Op: "syncfs", Path: dir, Err: err}
	}
	return nil
}

// WriteFile is Disk.WriteFile on the real file system.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	return Disk{}.WriteFile(path, data, mode)
}

// Rename is Disk.Rename on the real file system.
func Rename(old, new string) error { return Disk{}.Rename(old, new) }

// Remove is Disk.Remove on the real file system.
func Remove(path string) error { return Disk{}.Remove(path) }

// MkdirAll is Disk.MkdirAll on the real file system.
func MkdirAll(path string, mode fs.FileMode) error { return Disk{}.MkdirAll(path, mode) }

// SyncDir is Disk.SyncDir on the real file system.
func SyncDir(dir string) error { return Disk{}.SyncDir(dir) }

// SyncTree is Disk.SyncTree on the real file system.
func SyncTree(dir string) error { return Disk{}.SyncTree(dir) }
