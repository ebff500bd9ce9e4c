// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/durable"
)

// spoiled remembers, for later servers on this machine too, packs and parts of files
// in which damage was found: no new checkpoint refers to them, whoever lists them. The
// zero value remembers as long as the process lives.
type spoiled struct {
	path string // of a file with a key a line

	mu   sync.Mutex
	keys map[string]bool // guarded by mu
}

func openSpoiled(path string) (*spoiled, error) {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("store: %w", err)
	}
	k := &spoiled{path: path, keys: map[string]bool{}}
	for line := range strings.Lines(string(text)) {
		if key := strings.TrimSuffix(line, "\n"); bucket.CheckKey(key) == nil {
			k.keys[key] = true
		}
	}
	return k, nil
}

func (k *spoiled) has(key string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys[key]
}

// hasOf tells whether parts of a file are among them.
func (k *spoiled) hasOf(b *Blob) bool {
	return slices.ContainsFunc(b.Parts, func(o Object) bool { return k.has(o.Key) })
}

// update adds keys, and forgets those that are whole or gone.
func (k *spoiled) update(add []string, forget func(key string) bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := map[string]bool{}
	for key := range k.keys {
		if !forget(key) {
			now[key] = true
		}
	}
	for _, key := range add {
		now[key] = true
	}
	if maps.Equal(now, k.keys) {
		return nil
	}
	k.keys = now
	if k.path == "" {
		return nil
	}
	var text strings.Builder
	for _, key := range slices.Sorted(maps.Keys(now)) {
		text.WriteString(key + "\n")
	}
	if err := durable.WriteFile(k.path, []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// Distrust has no later checkpoint refer to the packs of one that is known to be
// damaged, also when it is deleted and others list them, until a check that reads
// everything finds them whole.
func (s *Store) Distrust(id string) {
	s.distrust(slices.Collect(maps.Keys(s.catalog.listed([]string{id}))), func(string) bool { return false })
}

func (s *Store) distrust(keys []string, forget func(key string) bool) {
	if err := s.spoiled.update(keys, forget); err != nil {
		s.log.Warn("what was found damaged is known only until the server ends", "error", err)
	}
	for _, key := range keys {
		_ = s.index.RemovePack(key) // a hint: another pack may have the same pages
	}
}
