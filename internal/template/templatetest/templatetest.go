// SPDX-License-Identifier: Apache-2.0

// Package templatetest gives tests a small template that is made in seconds,
// once per machine rather than once per test.
//
// The trees and images are below the user's cache directory and stay there
// between runs. They are keyed by content, so whatever a test finds is what it
// would have made. Images that no test has asked for since a day are removed,
// because every new agent makes one.
//
// The package is for tests only and knows nothing above package template.
package templatetest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencomputer/oc/internal/durable"
	"github.com/opencomputer/oc/internal/template"
)

// cacheFormat changes when the tree made of the same packages does.
const cacheFormat = "1"

// Small gives a tree with a shell, Python and the usual tools, and a Builder
// that has it. Both are shared by all tests: they must not be removed.
func Small(t testing.TB) (*template.Builder, template.Tree) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("making templates needs root: run the tests with sudo")
	}
	b, tree, err := small(t)
	if err != nil {
		t.Fatalf("make the small template: %v", err)
	}
	return b, tree
}

// Image gives the image of the small template with an agent.
func Image(t testing.TB, agent []byte) template.Image {
	t.Helper()
	b, tree := Small(t)
	unlock, err := lock(lockPath())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	img, err := b.Image(t.Context(), tree, agent)
	if err == nil {
		now := time.Now()
		err = os.Chtimes(img.Path, now, now) // says that it is in use
	}
	if err == nil {
		err = prune(b)
	}
	if err != nil {
		t.Fatalf("make the image of the small template: %v", err)
	}
	return img
}

// prune removes images that were not asked for lately. The caller has the lock.
func prune(b *template.Builder) error {
	hashes, err := b.Images()
	if err != nil {
		return err
	}
	for _, hash := range hashes {
		img, err := b.FindImage(hash)
		if err != nil {
			return err
		}
		st, err := os.Stat(img.Path)
		if err != nil {
			return err
		}
		if time.Since(st.ModTime()) > 24*time.Hour {
			if err := b.RemoveImage(hash); err != nil {
				return err
			}
		}
	}
	return nil
}

// cacheDir is where the trees and images are.
func cacheDir() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	return filepath.Join(cache, "oc-test-templates")
}

func lockPath() string { return filepath.Join(cacheDir(), "lock") }

func small(t testing.TB) (*template.Builder, template.Tree, error) {
	dir := cacheDir()
	b, err := template.New(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, template.Tree{}, err
	}
	unlock, err := lock(lockPath())
	if err != nil {
		return nil, template.Tree{}, err
	}
	defer unlock()
	key, err := hostState()
	if err != nil {
		return nil, template.Tree{}, err
	}
	record := filepath.Join(dir, "small-"+key+".json")
	var tree template.Tree
	if data, err := os.ReadFile(record); err == nil && json.Unmarshal(data, &tree) == nil {
		if tree, err = b.Tree(tree.Hash); err == nil {
			return b, tree, nil
		}
	}
	tree, err = b.BuildHost(t.Context(), template.Small(), nil)
	if err != nil {
		return nil, template.Tree{}, err
	}
	data, err := json.Marshal(tree)
	if err != nil {
		return nil, template.Tree{}, err
	}
	return b, tree, durable.WriteFile(record, data, 0o600)
}

// hostState names what the small template depends on: the packages it is made
// of and what this host has installed.
func hostState() (string, error) {
	status, err := os.ReadFile("/var/lib/dpkg/status")
	if err != nil {
		return "", fmt.Errorf("the small template is made of this host's Debian packages: %w", err)
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s %q\n", cacheFormat, template.Small())
	sum.Write(status)
	return hex.EncodeToString(sum.Sum(nil)[:16]), nil
}

// lock keeps the tests of several packages, which run at once, from making the
// same thing several times.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
