// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/opencomputer/oc/internal/fault"
)

func testKeys(t *testing.T, d database) {
	db := withClock(d.open(t))
	ctx := t.Context()
	if n, err := db.CountKeys(ctx); err != nil || n != 0 {
		t.Fatalf("%d keys, %v", n, err)
	}
	plain, key, err := db.CreateKey(ctx, "acme", "laptop")
	must(t, err)
	if !regexp.MustCompile(`^osb_[0-9a-f]{64}$`).MatchString(plain) {
		t.Errorf("key %q", plain)
	}
	if key.Prefix != plain[:12] || key.Name != "laptop" || strings.Contains(plain, key.Hash) {
		t.Errorf("record %+v", key)
	}
	second, _, err := db.CreateKey(ctx, "acme", "")
	must(t, err)
	_, _, err = db.CreateKey(ctx, "other", "x")
	must(t, err)

	org, got, err := db.LookupKey(ctx, plain)
	must(t, err)
	expectEqual(t, got, key)
	expectEqual(t, org, newOrg(t, db, "acme"))

	orgs, err := db.Orgs(ctx)
	must(t, err)
	expectEqual(t, ids(orgs, func(o Org) string { return o.Name }), []string{"acme", "other"})
	mine, err := db.Keys(ctx, "acme")
	must(t, err)
	expectEqual(t, ids(mine, func(k Key) string { return k.Name }), []string{"laptop", ""})
	for name, want := range map[string]int{"": 3, "other": 1, "nobody": 0} {
		keys, err := db.Keys(ctx, name)
		must(t, err)
		expectEqual(t, len(keys), want)
	}

	must(t, db.RevokeKey(ctx, key.ID))
	_, _, err = db.LookupKey(ctx, plain)
	expectFault(t, err, fault.Forbidden, "invalid API key")
	_, _, err = db.LookupKey(ctx, second)
	must(t, err)

	mine, err = db.Keys(ctx, "acme")
	must(t, err)
	revoked := mine[0].RevokedAt
	if revoked == nil {
		t.Fatal("no time of revocation")
	}
	must(t, db.RevokeKey(ctx, key.ID))
	mine, err = db.Keys(ctx, "acme")
	must(t, err)
	expectEqual(t, mine[0].RevokedAt, revoked)
	if n, err := db.CountKeys(ctx); err != nil || n != 3 {
		t.Fatalf("%d keys, %v", n, err)
	}
}

func testKeyErrors(t *testing.T, d database) {
	db := d.open(t)
	ctx := t.Context()
	_, _, err := db.LookupKey(ctx, "")
	expectFault(t, err, fault.Unauthorized, "missing API key")
	plain, key, err := db.CreateKey(ctx, "a", "k")
	must(t, err)
	for _, bad := range []string{
		"x", "osb_", plain[:len(plain)-1], plain + "0", strings.ToUpper(plain), key.Hash, key.Prefix,
		"' OR 1=1 --", "osb_\x00", strings.Repeat("f", 1<<20),
	} {
		_, _, err := db.LookupKey(ctx, bad)
		expectFault(t, err, fault.Forbidden, "invalid API key")
	}
	expectFault(t, db.RevokeKey(ctx, "key-none"), fault.NotFound, "key not found")
	for _, bad := range []string{"", "a\nb", "\x00", strings.Repeat("x", maxNameLen+1), "\xff"} {
		if _, err := db.EnsureOrg(ctx, bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("org %q: %v", bad, err)
		}
		if _, _, err := db.CreateKey(ctx, "a", bad); bad != "" && !fault.Is(err, fault.Invalid) {
			t.Errorf("key %q: %v", bad, err)
		}
	}
}

// testOrgsAtOnce has many first keys of one org: one org comes out.
func testOrgsAtOnce(t *testing.T, d database) {
	handles := []*DB{d.open(t), d.open(t)}
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			plain, _, err := handles[i%2].CreateKey(t.Context(), "new", "k")
			if err != nil {
				t.Errorf("create: %v", err)
				return
			}
			if _, _, err := handles[(i+1)%2].LookupKey(t.Context(), plain); err != nil {
				t.Errorf("lookup: %v", err)
			}
		})
	}
	wg.Wait()
	orgs, err := handles[0].Orgs(t.Context())
	must(t, err)
	keys, err := handles[0].Keys(t.Context(), "new")
	must(t, err)
	if len(orgs) != 1 || len(keys) != 12 {
		t.Errorf("%d orgs, %d keys", len(orgs), len(keys))
	}
}

func TestNewID(t *testing.T) {
	t.Parallel()
	pattern := regexp.MustCompile(`^sb-[0-9a-f]{8}$`)
	seen := map[string]bool{}
	for range 100 {
		id := NewID("sb")
		if !pattern.MatchString(id) || seen[id] {
			t.Fatalf("id %q", id)
		}
		seen[id] = true
	}
}
