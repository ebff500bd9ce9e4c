// SPDX-License-Identifier: Apache-2.0

package bucket

import (
	"strings"
	"testing"
)

func TestCheckPrefix(t *testing.T) {
	t.Parallel()
	for prefix, ok := range map[string]bool{
		"": true, "a": true, "a/": true, "a/b-c.d_e": true, "a/b.": true,
		"/": false, "a//": false, "../": false, "a/.b": false, ".": false, "a b": false,
		strings.Repeat("x", MaxElement+1): false,
	} {
		if err := CheckPrefix(prefix); (err == nil) != ok {
			t.Errorf("%q: %v", prefix, err)
		}
	}
}
