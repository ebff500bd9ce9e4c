// SPDX-License-Identifier: Apache-2.0

package dir

import (
	"testing"

	"github.com/opencomputer/oc/internal/bucket"
	"github.com/opencomputer/oc/internal/bucket/buckettest"
	"github.com/opencomputer/oc/internal/durable"
)

func open(t testing.TB, root string, disk durable.Disk) *Bucket {
	t.Helper()
	b, err := Open(root, disk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func TestConformance(t *testing.T) {
	t.Parallel()
	buckettest.Conformance(t, func(t *testing.T) bucket.Bucket { return open(t, t.TempDir(), durable.Disk{}) })
}
