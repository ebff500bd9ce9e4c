// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestSaveAndLoad(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	if c, err := Load(home); err != nil || c.APIURL != "" || c.APIKey != "" {
		t.Fatalf("missing file: %+v, %v", c, err)
	}
	if err := (File{APIURL: "http://h:1", APIKey: "osb_1"}).Save(home); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(Path(home))
	if err != nil {
		t.Fatal(err)
	}
	if want := "{\n  \"api_key\": \"osb_1\",\n  \"api_url\": \"http://h:1\"\n}\n"; string(data) != want {
		t.Errorf("file\n%s, want\n%s", data, want)
	}
	for name, want := range map[string]os.FileMode{Path(home): 0o600, filepath.Dir(Path(home)): 0o700} {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
	entries, _ := os.ReadDir(filepath.Dir(Path(home)))
	if len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestSaveTightensModesAndKeepsUnknownKeys(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, dirName), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(Path(home), []byte(`{"api_url":"http://old","login":{"name":"n"},"sessions_api_url":"s"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := Load(home)
	if err != nil || c.APIURL != "http://old" {
		t.Fatalf("%+v, %v", c, err)
	}
	c.APIKey = "k"
	if err := c.Save(home); err != nil {
		t.Fatal(err)
	}
	data, _ := os.ReadFile(Path(home))
	for _, want := range []string{`"name": "n"`, `"sessions_api_url": "s"`, `"api_key": "k"`, `"api_url": "http://old"`} {
		if !strings.Contains(string(data), want) {
			t.Errorf("%s is not in\n%s", want, data)
		}
	}
	if st, _ := os.Stat(Path(home)); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	if st, _ := os.Stat(filepath.Dir(Path(home))); st.Mode().Perm() != 0o700 {
		t.Errorf("directory mode %v", st.Mode())
	}
}

// TestSaveForAnotherUser is what a server started by sudo does.
func TestSaveForAnotherUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Fatal("this test gives files to another user: run it as root")
	}
	home := t.TempDir()
	if err := os.Chown(home, 4321, 4322); err != nil {
		t.Fatal(err)
	}
	if err := (File{APIKey: "k"}).Save(home); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{Path(home), filepath.Dir(Path(home))} {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); !ok || sys.Uid != 4321 || sys.Gid != 4322 {
			t.Errorf("%s: %+v", name, sys)
		}
	}
}

// TestSaveFollowsNoLinkOut guards root writing into a user's home.
func TestSaveFollowsNoLinkOut(t *testing.T) {
	t.Parallel()
	home, elsewhere := t.TempDir(), t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(home, dirName)); err != nil {
		t.Fatal(err)
	}
	if err := (File{APIKey: "k"}).Save(home); err == nil {
		t.Error("no error")
	}
	if entries, _ := os.ReadDir(elsewhere); len(entries) != 0 {
		t.Errorf("written outside: %v", entries)
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{
		"not JSON": "{", "wrong type": `{"api_url":1}`, "too large": `{"x":"` + strings.Repeat("x", maxBytes) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			home := t.TempDir()
			if err := os.Mkdir(filepath.Join(home, dirName), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(Path(home), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Load(home); err == nil || !strings.Contains(err.Error(), Path(home)) {
				t.Errorf("error %v does not name the file", err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"api_url":"u","api_key":"k","login":{"a":[1]}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse(data)
		if err != nil {
			return
		}
		out, err := c.encode()
		if err != nil {
			t.Fatalf("cannot write what was read: %v", err)
		}
		again, err := parse(out)
		if err != nil || again.APIURL != c.APIURL || again.APIKey != c.APIKey || len(again.others) != len(c.others) {
			t.Fatalf("%+v became %+v, %v", c, again, err)
		}
	})
}
