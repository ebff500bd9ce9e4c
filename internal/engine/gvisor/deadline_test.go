// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencomputer/oc/internal/engine"
)

func TestCaptureTimeGrowsWithTheWork(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	for _, tt := range []struct {
		bytes, engine int64
		want          time.Duration
	}{
		{0, 0, 20 * time.Second},
		{512 << 20, 0, 25 * time.Second},
		{10 * gib, 0, 2 * time.Minute},
		{0, 1_000_000 * 4096, 220 * time.Second}, // a million files, which take 45 s
		{gib, 50_000 * 4096, 40 * time.Second},
	} {
		if got := captureTime(tt.bytes, tt.engine); got != tt.want {
			t.Errorf("%d bytes, %d of the engine: %v, want %v", tt.bytes, tt.engine, got, tt.want)
		}
	}
}

// What comes before the freeze takes nothing of the time for it, and neither does
// whoever is asked between the two.
func TestStagesAreBoundOneByOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		st := stages{ready: time.Minute, freeze: time.Second, before: func() error {
			asked++
			time.Sleep(time.Hour)
			return nil
		}}
		ctx, ready, cancel := st.bound(t.Context())
		defer cancel()
		time.Sleep(st.ready - time.Millisecond)
		if err := ready(); err != nil || asked != 1 {
			t.Errorf("asked %d times, %v", asked, err)
		}
		time.Sleep(st.freeze - time.Millisecond)
		synctest.Wait()
		if ctx.Err() != nil {
			t.Errorf("in time, it ended: %v", context.Cause(ctx))
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if err := context.Cause(ctx); !errors.Is(err, errCaptureDeadline) {
			t.Errorf("too late for the freeze, it ended with: %v", err)
		}
	})
}

func TestStageBeforeTheFreezeIsBound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := stages{ready: time.Minute, freeze: time.Second, before: func() error {
			t.Error("asked when it was too late")
			return nil
		}}
		ctx, ready, cancel := st.bound(t.Context())
		defer cancel()
		time.Sleep(st.ready)
		synctest.Wait()
		if err := context.Cause(ctx); !errors.Is(err, errReadyDeadline) {
			t.Errorf("it ended with: %v", err)
		}
		if err := ready(); !errors.Is(err, errReadyDeadline) {
			t.Errorf("ready all the same: %v", err)
		}
	})
}

// What is still to be loaded has time to come, and none of the freeze's.
func TestTimeToLoad(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	st := stagesOf(engine.Process{}, &arena{estimate: 2 * gib, missing: gib}, engine.CaptureOptions{})
	if want := 40 * time.Second; st.freeze != want {
		t.Errorf("the freeze may take %v, want %v", st.freeze, want)
	}
	if want := 40*time.Second + 256*time.Second; st.ready != want {
		t.Errorf("what comes before may take %v, want %v", st.ready, want)
	}
}
