// SPDX-License-Identifier: Apache-2.0

package refs

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

var long = os.Getenv("OC_TEST_LONG") != ""

// TestEveryOrder goes through the orders in which requests of a few actors can
// happen, with at most a few preemptions, and with any number in the long run.
func TestEveryOrder(t *testing.T) {
	t.Parallel()
	for _, sc := range scenarios() {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			x := &explorer{sc: sc, bound: sc.bound, maxRuns: 1500}
			if long {
				x.bound, x.maxRuns = unbounded, 200_000
			}
			inBubble(t, func() {
				if r, bad := x.search(); bad != "" {
					t.Errorf("%s%s", bad, r.story())
				}
			})
			t.Logf("%d orders, %d steps, %d states; cut off: %v", x.runs, x.steps, len(x.seen), x.cut)
		})
	}
}

// TestRandomOrders goes where the depth-first search does not come to. A failure
// names the seed, and OC_TEST_SEED repeats it.
func TestRandomOrders(t *testing.T) {
	t.Parallel()
	seed, runs := seedOf(t), 60
	if long {
		runs = 5000
	}
	for _, sc := range scenarios() {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, func() {
				x := &explorer{sc: sc}
				if r, bad := x.random(seed, runs); bad != "" {
					t.Errorf("OC_TEST_SEED=%d, order %d: %s%s", seed, x.runs-1, bad, r.story())
				}
			})
		})
	}
}

// seedOf gives OC_TEST_SEED, or a new seed.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	s := os.Getenv("OC_TEST_SEED")
	if s == "" {
		return rand.Uint64()
	}
	seed, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return seed
}

// TestEveryRuleIsNeeded leaves out one rule after the other: each time there must
// be an order in which something is lost, or never freed.
func TestEveryRuleIsNeeded(t *testing.T) {
	t.Parallel()
	byName := map[string]*scenario{}
	for _, sc := range scenarios() {
		byName[sc.name] = sc
	}
	for _, tt := range []struct {
		name string
		f    faults
		in   string
	}{
		{"unordered", faults{unordered: true}, "clock behind"},
		{"createBlind", faults{createBlind: true}, "one id"},
		{"tokenIgnored", faults{tokenIgnored: true}, "one id"},
		{"basesFirst", faults{basesFirst: true}, "writer, page 1"},
		{"useDeleting", faults{useDeleting: true}, "writer, page 1"},
		{"renewAny", faults{renewAny: true}, "revoked with a renewal"},
		{"commitBlind", faults{commitBlind: true}, "revoked writer"},
		{"refusedIsOK", faults{refusedIsOK: true}, "revoked writer"},
		{"failUnfenced", faults{failUnfenced: true}, "no answers, once"},
		{"revokeBlind", faults{revokeBlind: true}, "revoked writer"},
		{"expiredDead", faults{expiredDead: true}, "clock ahead"},
		{"undeclared", faults{undeclared: true}, "abort"},
		{"prefixUnseen", faults{prefixUnseen: true}, "abort"},
		{"ownOffered", faults{ownOffered: true}, "handed on"},
		{"auditLate", faults{auditLate: true}, "audit"},
		{"oneList", faults{oneList: true}, "writer, page 1"},
		{"skipMissing", faults{skipMissing: true}, "handed on"},
		{"deletingDead", faults{deletingDead: true}, "handed on"},
		{"ownLive", faults{ownLive: true}, "writer, page 1"},
		{"writingDead", faults{writingDead: true}, "audit"},
		{"pinsIgnored", faults{pinsIgnored: true}, "writer, page 1"},
		{"pinsOwn", faults{pinsOwn: true}, "handed on"},
		{"pinnedGoes", faults{pinnedGoes: true}, "pinned"},
		{"holderGoes", faults{holderGoes: true}, "last holder"},
		{"objectsFirst", faults{objectsFirst: true}, "reader"},
		{"readFirst", faults{readFirst: true}, "reader"},
		{"unlocked", faults{unlocked: true}, "directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			sc := byName[tt.in]
			if sc == nil {
				t.Fatalf("no scenario %q", tt.in)
			}
			runs := 0
			inBubble(t, func() {
				for bound := range 5 {
					x := &explorer{sc: sc, f: tt.f, bound: bound, maxRuns: 20_000}
					r, bad := x.search()
					if runs += x.runs; bad != "" {
						t.Logf("%d orders, %d preemptions: %s%s", runs, bound, bad, r.story())
						return
					}
				}
				t.Errorf("not noticed in %d orders", runs)
			})
		})
	}
}
