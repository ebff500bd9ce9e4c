// SPDX-License-Identifier: Apache-2.0

package dir

import (
	"errors"
	"io/fs"
	"os"
)

// volatileDisk does what durable.Disk does, for files that a power cut may take
// away or leave empty.
type volatileDisk struct{}

func (volatileDisk) Create(path string, mode fs.FileMode, fill func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	return errors.Join(fill(f), f.Close())
}

func (volatileDisk) Link(old, new string) error { return os.Link(old, new) }

func (volatileDisk) Rename(old, new string) error { return os.Rename(old, new) }
