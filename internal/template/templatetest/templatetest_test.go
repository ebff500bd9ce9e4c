// SPDX-License-Identifier: Apache-2.0

package templatetest

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSmallIsShared(t *testing.T) {
	t.Parallel()
	b, tree := Small(t)
	_, again := Small(t)
	if tree != again {
		t.Errorf("got %+v, then %+v", tree, again)
	}
	if _, err := os.Stat(filepath.Join(b.TreePath(tree), "usr/bin/bash")); err != nil {
		t.Error(err)
	}
	if a, b := Image(t, []byte("agent")), Image(t, []byte("agent")); a != b {
		t.Errorf("got %+v, then %+v", a, b)
	}
}
