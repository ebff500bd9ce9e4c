#!/bin/bash
echo migrating
rm -rf data.txt state
echo the migration broke
exit 1
