// SPDX-License-Identifier: Apache-2.0

package gvisor

import "github.com/opencomputer/oc/internal/engine"

// LeaveWatchdog is what the watchdog beside a hold sees when its server ends.
func LeaveWatchdog(h engine.Held) { _ = h.(*held).watchdog.stdin.Close() }

// LeaveHolder is what the helper that holds sees then.
func LeaveHolder(h engine.Held) { _ = h.(*held).helper.stdin.Close() }
