# cmake -DPROGRAM=... -DPAGE=... -P manual.cmake: has the program write its manual page.
execute_process(COMMAND ${PROGRAM} help --man OUTPUT_FILE ${PAGE} RESULT_VARIABLE status)
if(NOT status EQUAL 0)
    message(FATAL_ERROR "${PROGRAM} help --man: expected exit status 0, found ${status}")
endif()
