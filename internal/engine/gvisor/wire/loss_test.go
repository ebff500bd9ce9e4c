// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"testing"

	"github.com/opencomputer/oc/internal/fault"
)

// Why a generation was lost is known to whoever asks later, as whoever was told.
func TestLoss(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := Loss(dir); err != nil {
		t.Errorf("of one that was not lost: %v", err)
	}
	damage := fault.New(fault.Damaged, "checkpoint cp-1 is damaged").WithHint("use another")
	for _, why := range []error{damage, errors.New("engine: loading: EOF")} { // the second is because of the first
		if err := LeaveLoss(dir, (Event{Event: EventLost}).Failed(why)); err != nil {
			t.Fatal(err)
		}
	}
	if err := Loss(dir); !fault.Is(err, fault.Damaged) || fault.As(err).Message != damage.Message || fault.As(err).Hint != damage.Hint {
		t.Errorf("it was lost because: %v", err)
	}
	if err := LeaveLoss(dir+"/none", Event{}); err == nil {
		t.Error("word was left nowhere")
	}
}
