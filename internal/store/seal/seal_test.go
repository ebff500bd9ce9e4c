// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencomputer/oc/internal/fault"
)

// line is the line of a key that repeats one byte.
func line(id string, b byte) string {
	return id + " " + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, keySize)) + "\n"
}

func parse(t testing.TB, text string) *Keys {
	t.Helper()
	k, err := ParseKeys([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sealedOnce is "sealed once", sealed with line("k1", 1) as part "3" of packs/1.
func sealedOnce(t testing.TB) []byte {
	t.Helper()
	sealed, err := hex.DecodeString("6f6373316b3100000000000000000000000000008f1cbfe1cf089e2cf7952cf039d4ca4d8971f958dc2f0e62e312c8ea1268f2a2a7b0adf90cb18efd96906286c32b15d5885cea")
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// checkFault wants an Invalid fault whose message has all of the parts.
func checkFault(t *testing.T, err error, parts ...string) {
	t.Helper()
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("not an invalid fault: %v", err)
		return
	}
	f := fault.As(err)
	for _, part := range parts {
		if !strings.Contains(f.Error(), part) {
			t.Errorf("%q does not name %q", f.Error(), part)
		}
	}
}

func TestSealAndOpen(t *testing.T) {
	t.Parallel()
	k := parse(t, Generate())
	for _, plain := range []string{"", "x", strings.Repeat("page", 100000)} {
		for _, ad := range []string{"", "segment 3"} {
			sealed := k.Seal([]byte("before"), []byte(plain), "packs/1", []byte(ad))
			if len(sealed) != len("before")+len(plain)+Overhead || !bytes.HasPrefix(sealed, []byte("before")) {
				t.Fatalf("sealed %d bytes into %d", len(plain), len(sealed))
			}
			sealed = sealed[len("before"):]
			got, err := k.Open([]byte("first,"), sealed, "packs/1", []byte(ad))
			if err != nil || string(got) != "first,"+plain {
				t.Errorf("opened %d bytes, %v", len(got), err)
			}
			if id, err := KeyOf(sealed); id != k.Current() || err != nil {
				t.Errorf("sealed with %q, %v", id, err)
			}
			if again := k.Seal(nil, []byte(plain), "packs/1", []byte(ad)); bytes.Equal(again, sealed) {
				t.Error("sealed twice with one nonce")
			}
		}
	}
}

// Neither an object nor a place in it can be given another one's blob.
func TestBoundToItsPlace(t *testing.T) {
	t.Parallel()
	k := parse(t, Generate())
	sealed := k.Seal(nil, []byte("secret"), "packs/1", []byte("3"))
	for _, at := range [][2]string{{"packs/2", "3"}, {"packs/1", "4"}, {"packs/1", ""}, {"packs/", "13"}, {"packs/13", ""}} {
		if got, err := k.Open(nil, sealed, at[0], []byte(at[1])); !errors.Is(err, ErrDamaged) {
			t.Errorf("opened as %q: %q, %v", at, got, err)
		}
	}
}

// Every bit counts, and so does every length; none of it looks like a missing
// key.
func TestEveryChangeIsDamage(t *testing.T) {
	t.Parallel()
	k := parse(t, Generate())
	sealed := k.Seal(nil, []byte("some plain text"), "o", nil)
	for i := range len(sealed) * 8 {
		changed := bytes.Clone(sealed)
		changed[i/8] ^= 1 << (i % 8)
		if got, err := k.Open(nil, changed, "o", nil); !errors.Is(err, ErrDamaged) {
			t.Errorf("bit %d changed: %q, %v", i, got, err)
		}
	}
	for n := range sealed {
		if got, err := k.Open(nil, sealed[:n], "o", nil); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut to %d: %q, %v", n, got, err)
		}
	}
	if got, err := k.Open(nil, append(bytes.Clone(sealed), 0), "o", nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("one byte more: %q, %v", got, err)
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	before := parse(t, line("k1", 1))
	after := parse(t, line("k2", 2)+line("k1", 1))
	if before.Current() != "k1" || after.Current() != "k2" {
		t.Errorf("current: %s, %s", before.Current(), after.Current())
	}
	old := before.Seal(nil, []byte("old"), "o", nil)
	if got, err := after.Open(nil, old, "o", nil); err != nil || string(got) != "old" {
		t.Errorf("%q, %v", got, err)
	}
	_, err := before.Open(nil, after.Seal(nil, []byte("new"), "o", nil), "o", nil)
	checkFault(t, err, "k2", "key file")
	if errors.Is(err, ErrDamaged) {
		t.Error("a missing key is called damage")
	}
	checkFault(t, before.Check("k2"), "k2")
	if err := errors.Join(after.Check("k1"), after.Check("k2"), after.Check("")); err != nil {
		t.Error(err)
	}

	oldDedup, err := after.DedupKeyOf("k1", "org")
	if err != nil || oldDedup != before.DedupKey("org") || oldDedup == after.DedupKey("org") {
		t.Errorf("%x, %v", oldDedup, err)
	}
	_, err = before.DedupKeyOf("k2", "org")
	checkFault(t, err, "k2")
}

// Two keys with one ID are told apart from damage.
func TestWrongKey(t *testing.T) {
	t.Parallel()
	sealed := parse(t, line("k1", 1)).Seal(nil, []byte("secret"), "o", nil)
	_, err := parse(t, line("k1", 2)).Open(nil, sealed, "o", nil)
	checkFault(t, err, "k1", "another key")
	if errors.Is(err, ErrDamaged) {
		t.Error("a wrong key is called damage")
	}
}

func TestNoKeys(t *testing.T) {
	t.Parallel()
	var none *Keys
	if none.Current() != "" || none.Check("") != nil {
		t.Error("nil keys want a key")
	}
	sealed := none.Seal([]byte("a"), []byte("bc"), "o", []byte("ad"))
	got, err := none.Open([]byte("0"), sealed, "p", nil)
	if string(sealed) != "abc" || string(got) != "0abc" || err != nil {
		t.Errorf("%q, %q, %v", sealed, got, err)
	}
	checkFault(t, none.Check("k1"), "k1", "no key file")
	if _, err := none.DedupKeyOf("k1", "org"); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if id, err := KeyOf(sealed); id != "" || !errors.Is(err, ErrDamaged) {
		t.Errorf("clear bytes have the key %q, %v", id, err)
	}
}

// Stores depend on these values for ever.
func TestDerivationsStay(t *testing.T) {
	t.Parallel()
	var none *Keys
	k := parse(t, line("k1", 1))
	for what, c := range map[string]struct{ got, want string }{
		"dedup, none": {fmt.Sprintf("%x", none.DedupKey("org")), "11327b745b7132c50ae0cf4d4b5f718439844808a7e7c17e098a984dbcf1b905"},
		"dedup":       {fmt.Sprintf("%x", k.DedupKey("org")), "96584e9bfd1d90d1cd27034fb84d30b230d9bc3cc2be851a387c617f16cb9ab1"},
		"check":       {fmt.Sprintf("%x", k.keys["k1"].check), "8f1cbfe1cf089e2c"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", what, c.got, c.want)
		}
	}
	keys := map[[32]byte]bool{}
	for _, k := range []*Keys{nil, k, parse(t, line("k1", 2))} {
		for _, org := range []string{"", "a", "b"} {
			keys[k.DedupKey(org)] = true
		}
	}
	if len(keys) != 9 {
		t.Errorf("%d different keys", len(keys))
	}

	if got, err := k.Open(nil, sealedOnce(t), "packs/1", []byte("3")); err != nil || string(got) != "sealed once" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestParseKeys(t *testing.T) {
	t.Parallel()
	good := "# comment\n\n  " + line("new-1", 1) + "\t" + strings.TrimSuffix(line("0.a_b", 2), "\n") + "  \r\n#" + line("k3", 3)
	k := parse(t, good)
	if k.Current() != "new-1" || len(k.keys) != 2 || k.Check("0.a_b") != nil || k.Check("k3") == nil {
		t.Errorf("%v", k.keys)
	}
	secret := strings.Fields(line("x", 7))[1]
	many := &strings.Builder{}
	for i := range maxKeys + 1 {
		fmt.Fprintf(many, "k%d %s\n", i, base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%032d", i)))
	}
	for what, text := range map[string]string{
		"nothing":      "",
		"comments":     "# k1\n\n",
		"no key":       "k1\n",
		"three fields": "k1 " + secret + " x\n",
		"short":        "k1 " + secret[4:] + "\n",
		"long":         "k1 " + secret[:40] + secret + "\n",
		"not base64":   "k1 " + "!" + secret[1:] + "\n",
		"no padding":   "k1 " + strings.TrimRight(secret, "=") + "\n",
		"loose bits":   "k1 " + secret[:42] + "d=\n",
		"zeros":        line("k1", 0),
		"id twice":     line("k1", 1) + line("k1", 2),
		"key twice":    line("k1", 7) + line("k2", 7),
		"long id":      line(strings.Repeat("a", maxID+1), 7),
		"capital id":   line("K1", 7),
		"dash id":      line("-", 7),
		"NUL id":       line("k\x00", 7),
		"too many":     many.String(),
		"too large":    line("k1", 7) + strings.Repeat("#\n", maxKeyFile/2),
	} {
		k, err := ParseKeys([]byte(text))
		if k != nil || !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, %v", what, k, err)
			continue
		}
		if msg := fmt.Sprintf("%v %s", err, fault.As(err).Hint); strings.Contains(msg, secret[4:20]) {
			t.Errorf("%s: the message tells the key: %s", what, msg)
		}
	}
}

func TestLoadKeys(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "keys")
	made := Generate()
	if err := os.WriteFile(path, []byte(made), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := LoadKeys(path)
	if err != nil || string(k.Current()) != strings.Fields(made)[0] {
		t.Fatalf("%v, %v", k, err)
	}
	checkFault(t, k.Check("other"), "other", path)
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o601} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := LoadKeys(path)
		checkFault(t, err, path, fmt.Sprintf("%04o", mode))
	}
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKeys(path); err != nil {
		t.Error(err)
	}
	_, err = LoadKeys(filepath.Join(dir, "none"))
	checkFault(t, err, filepath.Join(dir, "none"))
	_, err = LoadKeys(dir)
	checkFault(t, err, "regular")
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, []byte("# one\nk1 x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = LoadKeys(bad)
	checkFault(t, err, bad, "line 2")
}

// FuzzParseKeys finds no text that is accepted and is not what it says.
func FuzzParseKeys(f *testing.F) {
	f.Add("# c\n" + line("k2", 2) + line("k1", 1))
	f.Add("k1  \n")
	f.Add(line("k1", 0))
	f.Fuzz(func(t *testing.T, text string) {
		k, err := ParseKeys([]byte(text))
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("%v", err)
			}
			return
		}
		if k.Check(k.Current()) != nil || k.Current() == "" {
			t.Error("no current key")
		}
		for id, key := range k.keys {
			if !validID(string(id)) || !strings.Contains(text, string(id)) ||
				!strings.Contains(text, base64.StdEncoding.EncodeToString(key.master[:])) {
				t.Errorf("the key %q is not in the text", id)
			}
		}
	})
}

// FuzzOpen finds no bytes that open, but for the ones that were sealed. The
// header's checksum is put right, or nearly nothing would get past it.
func FuzzOpen(f *testing.F) {
	k := parse(f, line("k1", 1))
	sealed := sealedOnce(f) // the same in every process that takes part
	f.Add(sealed)
	f.Add(sealed[:Overhead])
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, blob []byte) {
		if len(blob) >= headerSize {
			blob = append(header("k1", k.keys["k1"])[:headerSize:headerSize], blob[headerSize:]...)
		}
		got, err := k.Open(nil, blob, "packs/1", []byte("3"))
		if err == nil && (!bytes.Equal(blob, sealed) || string(got) != "sealed once") {
			t.Errorf("opened %x", blob)
		}
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
	})
}

// FuzzKeyOf finds no header that is accepted and would be written differently.
func FuzzKeyOf(f *testing.F) {
	f.Add(sealedOnce(f))
	f.Add(make([]byte, Overhead))
	f.Fuzz(func(t *testing.T, blob []byte) {
		id, check, err := parseHeader(blob)
		if err != nil {
			return
		}
		if !bytes.Equal(header(id, key{check: check}), blob[:headerSize]) {
			t.Errorf("accepted %x", blob[:headerSize])
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	for _, size := range []int{4 << 10, 256 << 10} {
		k := parse(b, Generate())
		plain := bytes.Repeat([]byte("page"), size/4)
		sealed := k.Seal(nil, plain, "packs/1", nil)
		out := make([]byte, 0, len(sealed))
		b.Run(fmt.Sprintf("Seal/%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				k.Seal(out, plain, "packs/1", nil)
			}
		})
		b.Run(fmt.Sprintf("Open/%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := k.Open(out, sealed, "packs/1", nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
