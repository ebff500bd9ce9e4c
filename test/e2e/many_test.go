// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"

	"github.com/opencomputer/oc/client"
)

// TestManySpawnsInOneRequest makes more sandboxes at once than the machine can
// bring up side by side: each is there and goes on.
func TestManySpawnsInOneRequest(t *testing.T) {
	t.Parallel()
	s := ownServer(t, "", nil)
	b := create(t, s, "--memory", "256")
	b.count()
	before := b.counted()
	cp := b.checkpoint("source")
	res, err := api(t, s).SpawnCheckpoint(t.Context(), cp, client.SpawnRequest{Count: count(24, 100)})
	must(t, err)
	for _, sb := range res.All() {
		clone := box{t, s, sb.ID}
		if got := clone.counted(); got < before {
			t.Errorf("%s counts %d, its source had counted %d", sb.ID, got, before)
		}
		clone.countOn(2)
		oc(t, s, "kill", sb.ID)
	}
}
