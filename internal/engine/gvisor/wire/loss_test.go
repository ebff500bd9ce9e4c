// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"
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

// Whatever is there, whoever asks hears something that can be said.
func FuzzLoss(f *testing.F) {
	f.Add([]byte(`{"event":"lost","error":"x","fault":{"kind":"damaged","message":"m","hint":"h"}}`))
	f.Add([]byte(`{"event":"lost"}`))
	f.Add([]byte(`{"fault":null,"target":1e9}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := decodeLoss(b)
		if err == nil {
			return
		}
		again, jsonErr := json.Marshal(Event{Event: EventLost}.Failed(err))
		if jsonErr != nil {
			t.Fatal(jsonErr)
		}
		if got := decodeLoss(again); got == nil || fault.As(got).Kind != fault.As(err).Kind {
			t.Errorf("%v is passed on as %v", err, got)
		}
	})
}
