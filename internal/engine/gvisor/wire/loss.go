// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// lossFile in a generation's directory says why its pager ended it: a restoring
// helper outlives the server that it tells.
const lossFile = "loss.json"

// LeaveLoss leaves the event of a loss in the generation's directory, unless one is
// there: the first is the cause of what follows.
func LeaveLoss(dir string, ev Event) error {
	f, err := os.CreateTemp(dir, lossFile+".")
	if err == nil {
		defer os.Remove(f.Name())
		err = errors.Join(json.NewEncoder(f).Encode(ev), f.Close())
	}
	if err == nil { // whole or not at all
		err = os.Link(f.Name(), filepath.Join(dir, lossFile))
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("engine: %w", err)
	}
	return nil
}

// Loss gives the error of the event that LeaveLoss left; nil if it left none.
func Loss(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, lossFile))
	if err != nil {
		return nil // who cannot read it knows no more
	}
	return decodeLoss(b)
}

func decodeLoss(b []byte) error {
	var ev Event
	if err := json.Unmarshal(b, &ev); err != nil {
		return fmt.Errorf("engine: a loss whose reason cannot be read: %w", err)
	}
	return ev.Err()
}
