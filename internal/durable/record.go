// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Kind says what a Step does.
type Kind string

// The steps that durable changes are made of.
const (
	StepWrite    Kind = "write"     // a new file's content, not yet synced
	StepRename   Kind = "rename"    // not yet synced
	StepLink     Kind = "link"      // not yet synced
	StepRemove   Kind = "remove"    // not yet synced
	StepMkdir    Kind = "mkdir"     // not yet synced
	StepSync     Kind = "sync"      // of a file: its content; of a directory: its names
	StepSyncTree Kind = "sync_tree" // of everything
)

// Step is one step of a durable change.
type Step struct {
	Kind Kind
	Path string
	New  string      // StepRename, StepLink: the new name
	Data []byte      // StepWrite
	Mode fs.FileMode // StepWrite, StepMkdir
}

// Recorder notes the steps of a Disk for tests. It may be used by many
// goroutines; the zero value is ready.
type Recorder struct {
	// Fail, if set, is asked before each step (n counts from 0); an error makes
	// that step fail with it, undone. It must not change while a Disk is in use.
	Fail func(n int, s Step) error

	mu    sync.Mutex
	steps []Step // guarded by mu
}

// Disk gives a Disk that works on the real file system and is recorded.
func (r *Recorder) Disk() Disk { return Disk{before: r.note} }

func (r *Recorder) note(s Step) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Fail != nil {
		if err := r.Fail(len(r.steps), s); err != nil {
			return err
		}
	}
	s.Data = slices.Clone(s.Data)
	r.steps = append(r.steps, s)
	return nil
}

// Steps gives a copy of what has been noted so far.
func (r *Recorder) Steps() []Step {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.steps)
}

// Replay makes in dir, which must be as the recorded directory was before the
// first step, what a power cut could leave after the steps given (a prefix of
// Steps; their paths are below from). What was synced is there; for every other
// step keep decides, by its index, whether it had reached the disk by itself. A
// nil keep loses all of them. A file's content that was not synced while its
// name survives is left empty.
func Replay(from, dir string, steps []Step, keep func(i int) bool) error {
	place := func(p string) (string, error) {
		rel, err := filepath.Rel(from, p)
		if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
			return "", fmt.Errorf("durable: %s is not below %s", p, from)
		}
		return filepath.Join(dir, rel), nil
	}
	for i, s := range steps {
		later := steps[i+1:]
		survives := keep != nil && keep(i)
		path, err := place(s.Path)
		if err != nil {
			return err
		}
		switch s.Kind {
		case StepWrite:
			data := s.Data
			if !survives && !synced(later, s.Path) {
				data = nil
			}
			err = os.WriteFile(path, data, s.Mode)
		case StepMkdir:
			if survives || synced(later, filepath.Dir(s.Path)) {
				err = os.MkdirAll(path, s.Mode)
			}
		case StepRemove:
			if survives || synced(later, filepath.Dir(s.Path)) {
				err = os.Remove(path)
			}
		case StepRename, StepLink:
			if survives || synced(later, filepath.Dir(s.New)) {
				var to string
				if to, err = place(s.New); err == nil {
					err = map[Kind]func(old, new string) error{StepRename: os.Rename, StepLink: os.Link}[s.Kind](path, to)
				}
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// synced tells whether the steps sync path.
func synced(steps []Step, path string) bool {
	return slices.ContainsFunc(steps, func(s Step) bool {
		return s.Kind == StepSyncTree || s.Kind == StepSync && s.Path == path
	})
}
