// SPDX-License-Identifier: Apache-2.0

package main

import (
	"regexp"
	"testing"
)

func TestStoreKeys(t *testing.T) {
	t.Parallel()
	a, b := newStoreKey(), newStoreKey()
	if a == b || !regexp.MustCompile(`^[0-9a-f]{8} [A-Za-z0-9+/]{43}=\n$`).MatchString(a) {
		t.Errorf("%q and %q", a, b)
	}
}
