// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencomputer/oc/internal/fault"
)

// Who deletes a checkpoint waits for those who use it, but not for long.
func TestDeleteWaitsForUsers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const id = "cp-1"
		s := &Service{}
		used, err := s.locks.rlock(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if _, err := s.lockToDelete(t.Context(), id); !fault.Is(err, fault.Conflict) || time.Since(begun) != deleteWait {
			t.Errorf("after %s: %v", time.Since(begun), err)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.lockToDelete(gone, id); !errors.Is(err, context.Canceled) {
			t.Errorf("whoever asked has gone: %v", err)
		}
		time.AfterFunc(deleteWait/2, used)
		unlock, err := s.lockToDelete(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if unlock(); s.locks.held(id) {
			t.Error("it is held by nobody")
		}
	})
}
