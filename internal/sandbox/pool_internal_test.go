// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"testing"
	"testing/synctest"
	"time"
)

// While somebody holds the pool it is not refilled, however long ago something
// was taken.
func TestPoolIsQuiet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &Service{ctx: t.Context()}
		s.pool = newPool(s, 1)
		first, second := s.Quiet(), s.Quiet()
		var refilled bool
		go func() { refilled = s.pool.quiet() }()
		look := func(when string, want bool) {
			t.Helper()
			time.Sleep(10 * poolQuiet) // of the bubble
			synctest.Wait()
			if refilled != want {
				t.Errorf("%s: it would be refilled: %v", when, refilled)
			}
		}
		look("held by two", false)
		first()
		first()
		look("one has let go, twice", false)
		second()
		look("both have let go", true)
	})
}
