#!/bin/bash
echo "experiment a sees $(cat data.txt)"
echo a >result.txt
