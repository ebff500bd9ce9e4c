// SPDX-License-Identifier: Apache-2.0

package cli

import "strings"

// pairs decodes the values of a flag that takes K=V. One value may hold several
// pairs separated by commas, as in A=1,B=2; a comma that no further pair follows
// belongs to the value, as in A=1,2.
func pairs(flag string, values []string) (map[string]string, error) {
	if len(values) == 0 {
		return nil, nil
	}
	out := make(map[string]string)
	for _, value := range values {
		for _, pair := range splitPairs(value) {
			k, v, ok := strings.Cut(pair, "=")
			if !ok || k == "" {
				return nil, usage("", "invalid --%s value %q: want KEY=VALUE", flag, pair)
			}
			out[k] = v
		}
	}
	return out, nil
}

// splitPairs splits at those commas that a KEY= follows.
func splitPairs(s string) []string {
	var out []string
	for _, part := range strings.Split(s, ",") {
		if len(out) > 0 && !startsPair(part) {
			out[len(out)-1] += "," + part
			continue
		}
		out = append(out, part)
	}
	return out
}

// startsPair tells whether s begins with a key of letters, digits, "_", "-" and
// "." and an equals sign.
func startsPair(s string) bool {
	key, _, ok := strings.Cut(s, "=")
	if !ok || key == "" {
		return false
	}
	for _, r := range key {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune("_-.", r):
		default:
			return false
		}
	}
	return true
}
