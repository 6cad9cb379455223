<?php
function on_handle()
{
    return strtoupper(arca::$request) . ' from ' . arca::$client_ip . "\n";
}

function nothing() {}

$ARCANGELO_USERSPACE = [
    'on_init' => 'nothing', 'on_start' => 'nothing', 'on_stop' => 'nothing', 'on_handle' => 'on_handle',
];
