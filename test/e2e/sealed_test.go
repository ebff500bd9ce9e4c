// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencomputer/oc/client"
	"github.com/opencomputer/oc/test/harness"
)

// secret is what must not be readable in a sealed store. Beside random bytes, so
// that compression leaves it as it is.
const secret = "the-secret-that-nobody-may-read"

// keepSecret has the sandbox hold it in memory.
func (b box) keepSecret() {
	b.t.Helper()
	b.sh(`for i in $(seq 200); do head -c 2000 /dev/urandom; echo "` + secret + `"; done >/dev/shm/secret`)
}

// storeHas tells in how many files of a server's store a text is.
func storeHas(t *testing.T, s *harness.Server, text string) (n int) {
	t.Helper()
	must(t, filepath.WalkDir(filepath.Join(s.Data, "store"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(text)) {
			n++
		}
		return err
	}))
	return n
}

// TestSealedStore keeps checkpoints sealed, takes the keys away, gives others,
// and rotates them.
func TestSealedStore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	oldKey := newKey(t)
	keys := keyFile(t, dir, "keys", oldKey)
	s := ownServer(t, "", harness.Settings{"store-keys": keys})
	b := create(t, s)
	b.count()
	b.keepSecret()
	cp := b.checkpoint("sealed")
	if n := storeHas(t, s, secret); n > 0 {
		t.Errorf("the secret is in %d files of the store", n)
	}
	if !asJSON[client.StoreStats](t, s, "store", "stats").Sealed {
		t.Error("the statistics do not say that it is sealed")
	}
	secretOf := func(x box) {
		t.Helper()
		x.countOn(5)
		x.ticks()
		if got := x.sh("grep -ac " + secret + " /dev/shm/secret"); got != "200" {
			t.Errorf("the secret is there %s times", got)
		}
		oc(t, s, "kill", x.id)
	}
	secretOf(spawn(t, s, cp))

	id, _, _ := strings.Cut(oldKey, " ")
	newLine := newKey(t)
	for _, file := range []string{"", keyFile(t, dir, "others", newLine)} {
		must(t, s.Down(t.Context()))
		must(t, s.Set("store-keys", file))
		must(t, s.Up(t.Context()))
		for _, args := range [][]string{{"checkpoint", "spawn", cp}, {"checkpoint", "restore", b.id, cp}, {"checkpoint", "verify", cp}} {
			refused(t, s, 3, []string{id, "--store-keys"}, args...)
		}
		if !strings.Contains(s.Log(), id) {
			t.Error("the log does not name the key")
		}
		oc(t, s, "store", "check", "--read-data")
		oc(t, s, "store", "gc")
		if list := asJSON[[]client.Checkpoint](t, s, "checkpoint", "list", b.id); len(list) != 1 || list[0].Status != client.CheckpointReady || list[0].Damaged {
			t.Errorf("without its key the checkpoint is %+v", list)
		}
		b.countOn(5)
	}

	must(t, s.Down(t.Context()))
	must(t, s.Set("store-keys", keyFile(t, dir, "rotated", newLine+oldKey)))
	must(t, s.Up(t.Context()))
	secretOf(spawn(t, s, cp))
	newID, _, _ := strings.Cut(newLine, " ")
	if n := storeHas(t, s, newID); n > 0 {
		t.Fatalf("%d files are sealed with the new key before anything was stored", n)
	}
	next := b.checkpoint("of the new key")
	if storeHas(t, s, newID) == 0 {
		t.Error("the new key seals nothing")
	}
	secretOf(spawn(t, s, next))
	b.restore(cp)
	if n := storeHas(t, s, secret); n > 0 {
		t.Errorf("the secret is in %d files of the store", n)
	}
	if report := sound(t, s); report.Checkpoints < 2 {
		t.Errorf("the check saw %d checkpoints", report.Checkpoints)
	}

	// The test sees what is not sealed.
	must(t, s.Down(t.Context()))
	must(t, s.Set("store-keys", ""))
	must(t, s.Up(t.Context()))
	clear := create(t, s)
	clear.keepSecret()
	clear.checkpoint("clear")
	if storeHas(t, s, secret) == 0 {
		t.Error("the secret is not found in a store that is not sealed")
	}
}

// newKey makes a line for a key file.
func newKey(t *testing.T) string {
	t.Helper()
	return oc(t, shared, "store", "new-key") + "\n"
}

func keyFile(t *testing.T, dir, name, lines string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	must(t, os.WriteFile(path, []byte(lines), 0o600))
	return path
}
