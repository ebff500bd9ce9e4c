// SPDX-License-Identifier: Apache-2.0

package node

import (
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/opencomputer/oc/internal/meta"
)

// TestFirstKeyIsNeverLost: one that could not be shown does not exist.
func TestFirstKeyIsNeverLost(t *testing.T) {
	t.Parallel()
	db, err := meta.Open(t.Context(), filepath.Join(t.TempDir(), "meta.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	n := &Node{meta: db}
	func() {
		defer func() { _ = recover() }()
		_ = n.FirstKey(t.Context(), func(string) { panic("the server dies") })
	}()
	var shown []string
	for range 2 {
		if err := n.FirstKey(t.Context(), func(plain string) { shown = append(shown, plain) }); err != nil {
			t.Fatal(err)
		}
	}
	if len(shown) != 1 {
		t.Fatalf("shown %q", shown)
	}
	if org, _, err := db.LookupKey(t.Context(), shown[0]); err != nil || org.Name != DefaultOrg {
		t.Errorf("the key is of %+v, %v", org, err)
	}
}
