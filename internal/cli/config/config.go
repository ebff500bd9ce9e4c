// SPDX-License-Identifier: Apache-2.0

// Package config is the client's configuration file, ~/.oc/config.json: where
// the API is and with which key to speak to it.
//
// The directory has mode 0700 and the file 0600, both belonging to the owner of
// the home directory, so that root can write it for a user. Writing replaces the
// file in one step and keeps the keys that this version does not know.
//
// The package knows nothing of commands, flags or the API. It does not use
// internal/durable, because it is also run by root in another user's home: all
// names are resolved below that home (os.Root), so that no link in it can lead
// the write elsewhere.
package config

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// DefaultAPIURL is where a server listens unless it is told otherwise.
const DefaultAPIURL = "http://127.0.0.1:7778"

const (
	dirName  = ".oc"
	fileName = "config.json"
	maxBytes = 1 << 20
)

// The keys of the file that the CLI uses.
const (
	keyAPIURL = "api_url"
	keyAPIKey = "api_key"
)

// File is the content of the configuration file. Empty fields are absent.
type File struct {
	APIURL string // base URL of the API, with or without /api
	APIKey string // "osb_" and 64 hex digits; not validated here

	others map[string]json.RawMessage // keys we do not know, kept as they are
}

// Path gives the name of the configuration file of the user with that home.
func Path(home string) string { return filepath.Join(home, dirName, fileName) }

// Load reads the configuration of the user with that home. A missing file is an
// empty configuration.
func Load(home string) (File, error) {
	f, err := os.Open(Path(home))
	if errors.Is(err, fs.ErrNotExist) {
		return File{}, nil
	}
	if err != nil {
		return File{}, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return File{}, fmt.Errorf("read configuration: %w", err)
	}
	if len(data) > maxBytes {
		return File{}, fmt.Errorf("read configuration: %s is larger than %d bytes", Path(home), maxBytes)
	}
	c, err := parse(data)
	if err != nil {
		return File{}, fmt.Errorf("read configuration: %s: %w", Path(home), err)
	}
	return c, nil
}

// parse decodes the file's bytes.
func parse(data []byte) (File, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		return File{}, err
	}
	var c File
	for key, into := range map[string]*string{keyAPIURL: &c.APIURL, keyAPIKey: &c.APIKey} {
		raw, ok := all[key]
		if !ok {
			continue
		}
		if err := json.Unmarshal(raw, into); err != nil {
			return File{}, fmt.Errorf("%s: %w", key, err)
		}
		delete(all, key)
	}
	c.others = all
	return c, nil
}

// encode gives the file's bytes: two spaces of indent and a final newline.
func (c File) encode() ([]byte, error) {
	all := make(map[string]any, len(c.others)+2)
	for k, v := range c.others {
		all[k] = v
	}
	if c.APIURL != "" {
		all[keyAPIURL] = c.APIURL
	}
	if c.APIKey != "" {
		all[keyAPIKey] = c.APIKey
	}
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}

// Save writes the configuration of the user with that home. Either the old file
// or the new one is there at any moment.
func (c File) Save(home string) error {
	if err := c.save(home); err != nil {
		return fmt.Errorf("write configuration %s: %w", Path(home), err)
	}
	return nil
}

func (c File) save(home string) error {
	data, err := c.encode()
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(home)
	if err != nil {
		return err
	}
	defer root.Close()
	owner, err := root.Stat(".")
	if err != nil {
		return err
	}
	if err := root.Mkdir(dirName, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dir, err := root.OpenRoot(dirName)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Chmod(".", 0o700); err != nil {
		return err
	}
	if err := giveTo(dir, ".", owner); err != nil {
		return err
	}
	return replace(dir, data, owner)
}

// replace writes the file under a temporary name, makes it durable and renames
// it.
func replace(dir *os.Root, data []byte, owner fs.FileInfo) (err error) {
	tmp := fileName + "." + rand.Text()
	f, err := dir.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = dir.Remove(tmp)
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = giveTo(dir, tmp, owner)
	}
	if err == nil {
		err = dir.Rename(tmp, fileName)
	}
	if err != nil {
		return err
	}
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// giveTo makes name belong to the owner of the home directory, where only root
// can.
func giveTo(dir *os.Root, name string, owner fs.FileInfo) error {
	st, ok := owner.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 {
		return nil
	}
	return dir.Lchown(name, int(st.Uid), int(st.Gid))
}
